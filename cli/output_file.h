#pragma once

#include <string>

namespace seqattn::cli {

// Throws std::runtime_error, naming the path and the reason, where no file could be written there.
// Makes and changes nothing; to be called before work whose result goes there.
void check_writable(const std::string& path);

}  // namespace seqattn::cli
