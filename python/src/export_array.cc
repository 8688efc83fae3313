#include <algorithm>
#include <array>
#include <cstddef>
#include <memory>
#include <new>

#include "arrays.h"
#include "device_arrays.h"

namespace seqattn::python {
namespace {

nb::dlpack::dtype dlpack_dtype(DType dtype) {
  using Code = nb::dlpack::dtype_code;
  const Code code = dtype == DType::kBFloat16 ? Code::Bfloat : Code::Float;
  return {static_cast<std::uint8_t>(code), static_cast<std::uint8_t>(8 * size_of(dtype)), 1};
}

// A type that numpy lacks, where ml_dtypes is installed, else none. Looked up once; never freed,
// since the interpreter may be gone when statics are destroyed.
nb::handle find_ml_dtype(const char* name) {
  try {
    return nb::object(nb::module_::import_("ml_dtypes").attr(name)).release();
  } catch (nb::python_error& e) {
    if (!e.matches(PyExc_ImportError)) throw;
    return nb::none().release();
  }
}
nb::handle ml_dtype(DType dtype) {
  static const nb::handle bfloat16 = find_ml_dtype("bfloat16");
  static const nb::handle float8 = find_ml_dtype("float8_e4m3fn");
  return dtype == DType::kBFloat16 ? bfloat16 : float8;
}

template <class Kind>
nb::object export_as(void* data, std::span<const std::size_t> shape, const std::int64_t* strides,
                     nb::dlpack::dtype dtype, nb::handle owner, Device device = cpu()) {
  const int type =
      device.type == DeviceType::kCUDA ? nb::device::cuda::value : nb::device::cpu::value;
  return nb::cast(nb::ndarray<Kind>(data, shape.size(), shape.data(), owner, strides, dtype, type,
                                    device.index));
}

// Memory that lives as long as the capsule.
template <class T>
std::pair<T*, nb::capsule> owned(std::size_t count) {
  // 64-byte alignment is what vector loads of any width like best.
  constexpr std::align_val_t kAlignment{64};
  auto* data = static_cast<T*>(::operator new(count * sizeof(T), kAlignment));
  try {
    return {data, nb::capsule(data, [](void* p) noexcept { ::operator delete(p, kAlignment); })};
  } catch (...) {
    ::operator delete(data, kAlignment);
    throw;
  }
}

}  // namespace

nb::object export_array(Framework framework, const TensorView& view, nb::handle owner) {
  std::array<std::size_t, TensorView::kMaxRank> sizes;
  std::copy_n(view.shape.begin(), view.rank, sizes.begin());
  const std::span<const std::size_t> shape(sizes.data(), static_cast<std::size_t>(view.rank));
  const bool is_float8 = view.dtype == DType::kFloat8E4M3;
  const nb::dlpack::dtype dtype = is_float8 ? nb::dtype<std::uint8_t>() : dlpack_dtype(view.dtype);
  if (framework == Framework::kTorch && is_float8) {
    const nb::object bits =
        export_as<nb::pytorch>(view.data, shape, view.strides.data(), dtype, owner, view.device);
    return bits.attr("view")(loaded_module("torch").attr("float8_e4m3fn"));
  }
  if (framework == Framework::kTorch) {
    return export_as<nb::pytorch>(view.data, shape, view.strides.data(), dtype, owner, view.device);
  }
  if (view.device.type == DeviceType::kCUDA) {
    require_cupy(view.device);
    const auto bits = view.dtype == DType::kBFloat16 ? nb::dtype<std::uint16_t>() : dtype;
    return with_dtype(
        export_as<nb::cupy>(view.data, shape, view.strides.data(), bits, owner, view.device),
        view.dtype);
  }
  const bool is_bfloat16 = view.dtype == DType::kBFloat16;
  // The buffer protocol knows neither bfloat16 nor 8 bits.
  nb::object bits = export_as<nb::numpy>(view.data, shape, view.strides.data(),
                                         is_bfloat16 ? nb::dtype<std::uint16_t>() : dtype, owner);
  if (!is_bfloat16 && !is_float8) return bits;
  const nb::handle known = ml_dtype(view.dtype);
  return known.is_none() ? bits : nb::object(bits.attr("view")(known));
}

nb::object export_counts(std::span<const std::int32_t> values, nb::handle owner) {
  return nb::cast(
      nb::ndarray<nb::numpy, const std::int32_t>(values.data(), {values.size()}, owner));
}

nb::object export_ints(Framework framework, std::span<const std::int32_t> values,
                       nb::handle owner) {
  if (framework == Framework::kNumpy) return export_counts(values, owner);
  auto [data, capsule] = owned<std::int32_t>(values.size());
  std::copy(values.begin(), values.end(), data);
  return nb::cast(nb::ndarray<nb::pytorch, std::int32_t>(data, {values.size()}, capsule));
}

NewArray new_array(Framework framework, Device device, DType dtype, ListView<std::int64_t> shape) {
  if (device.type == DeviceType::kCUDA) return new_device_array(framework, device, dtype, shape);
  std::int64_t bytes = size_of(dtype);
  for (const std::int64_t size : shape) {
    if (size >= 0 && __builtin_mul_overflow(bytes, size, &bytes)) throw std::bad_alloc();
  }
  const TensorView empty = TensorView::contiguous(static_cast<void*>(nullptr), dtype, shape);
  auto [data, capsule] = owned<std::byte>(static_cast<std::size_t>(bytes));
  TensorView view = empty;
  view.data = data;
  return {export_array(framework, view, capsule), view};
}

}  // namespace seqattn::python
