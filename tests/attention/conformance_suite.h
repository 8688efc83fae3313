#pragma once

#include <gtest/gtest.h>

#include <string>
#include <tuple>

#include "attention_case.h"
#include "devices.h"
#include "random_source.h"

namespace seqattn::testing {

inline Device device_of(Device device) { return device; }
inline Device device_of(const std::tuple<Device, AttentionCase>& param) {
  return std::get<0>(param);
}

// Tests for each device, skipped before any of them runs where the device is not.
template <class Param>
class DeviceTest : public ::testing::TestWithParam<Param> {
 protected:
  void SetUp() final {
    if (!is_here(device())) GTEST_SKIP() << test_name(device()) << " is not here";
    prepare();
  }
  // What a suite sets up, on a device that is here.
  virtual void prepare() {}
  Device device() const { return device_of(this->GetParam()); }
};

// A group of cases, each run on each device:
//   class Shapes : public ConformanceSuite {};
//   TEST_P(Shapes, AgreeWithTheOracle) { check_case(attention_case(), device(), random); }
//   SEQATTN_INSTANTIATE_CASES(Shapes, some_cases());
class ConformanceSuite : public DeviceTest<std::tuple<Device, AttentionCase>> {
 protected:
  AttentionCase attention_case() const { return device_case(std::get<1>(GetParam()), device()); }
  std::mt19937_64 random = random_source(2000);
};

inline std::string conformance_name(
    const ::testing::TestParamInfo<std::tuple<Device, AttentionCase>>& info) {
  return test_name(std::get<0>(info.param)) + "_" + std::get<1>(info.param).name;
}

// Tests of behaviour, once for each device.
class DeviceSuite : public DeviceTest<Device> {
 protected:
  std::mt19937_64 random = random_source(2001);
};

inline std::string device_name(const ::testing::TestParamInfo<Device>& info) {
  return test_name(info.param);
}

}  // namespace seqattn::testing

#define SEQATTN_INSTANTIATE_CASES(suite, cases)                                 \
  INSTANTIATE_TEST_SUITE_P(                                                     \
      , suite,                                                                  \
      ::testing::Combine(::testing::ValuesIn(seqattn::testing::test_devices()), \
                         ::testing::ValuesIn(cases)),                           \
      seqattn::testing::conformance_name)

#define SEQATTN_INSTANTIATE_DEVICES(suite)                                                 \
  INSTANTIATE_TEST_SUITE_P(, suite, ::testing::ValuesIn(seqattn::testing::test_devices()), \
                           seqattn::testing::device_name)
