#pragma once

#include <gtest/gtest.h>

#include <exception>
#include <string>

#include "seqattn/error.h"

namespace seqattn::testing {

// The message of the Exception that the call throws. Anything else is a failure of the test.
template <class Exception = InvalidArgumentError, class Call>
std::string error_of(const Call& call) {
  try {
    call();
  } catch (const Exception& error) {
    return error.what();
  } catch (const std::exception& error) {
    ADD_FAILURE() << "threw an exception of another type: " << error.what();
    return "";
  }
  ADD_FAILURE() << "threw nothing";
  return "";
}

}  // namespace seqattn::testing
