#pragma once

#include <cstddef>
#include <initializer_list>
#include <ranges>
#include <span>
#include <type_traits>

namespace seqattn {

// A read-only list argument: what `std::span<const T>` is, and a braced list as well, so that
// `allocate({1, 2, 3}, {100, 150, 80})` compiles. It borrows; use it for parameters only.
template <class T>
class ListView {
 public:
  constexpr ListView() = default;
  constexpr ListView(std::initializer_list<T> list) : items_(list.begin(), list.size()) {}
  // NOLINTBEGIN(google-explicit-constructor): arguments convert, as they do to std::span.
  template <class Range>
  requires(std::ranges::contiguous_range<const Range>&& std::ranges::sized_range<const Range>&&
               std::is_same_v<std::ranges::range_value_t<Range>, T>) constexpr ListView(const Range&
                                                                                            range)
      : items_(std::ranges::data(range), std::ranges::size(range)) {}
  // Elements of another type cannot be borrowed: said here rather than by a list of candidates.
  template <class Range>
  requires(std::ranges::contiguous_range<const Range>&& std::ranges::sized_range<const Range> &&
           !std::is_same_v<std::ranges::range_value_t<Range>, T>) constexpr ListView(const Range&) {
    static_assert(
        std::is_same_v<std::ranges::range_value_t<Range>, T>,
        "a list argument borrows its elements, so that their type has to be the very one: "
        "std::int64_t for ids and lengths, std::int32_t for pages and indptr");
  }
  // NOLINTEND(google-explicit-constructor)

  constexpr const T* begin() const noexcept { return items_.data(); }
  constexpr const T* end() const noexcept { return items_.data() + items_.size(); }
  constexpr const T* data() const noexcept { return items_.data(); }
  constexpr std::size_t size() const noexcept { return items_.size(); }
  constexpr bool empty() const noexcept { return items_.empty(); }
  constexpr const T& operator[](std::size_t i) const { return items_[i]; }

 private:
  std::span<const T> items_;
};

}  // namespace seqattn
