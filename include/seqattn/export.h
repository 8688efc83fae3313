#pragma once

// Symbols of the public interface stay visible when the library is built as a shared object with
// hidden visibility (the way CMake builds it here).
#define SEQATTN_EXPORT __attribute__((visibility("default")))
