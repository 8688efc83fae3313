#include "output_file.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <stdexcept>

namespace seqattn::cli {

void check_writable(const std::string& path) {
  namespace fs = std::filesystem;
  const auto fail = [&](int error) {
    throw std::runtime_error(path + ": " + std::strerror(error));
  };
  std::error_code code;
  const fs::file_status status = fs::status(path, code);
  if (fs::is_directory(status)) fail(EISDIR);
  if (fs::exists(status)) {
    if (access(path.c_str(), W_OK) != 0) fail(errno);
    return;
  }
  if (code && status.type() != fs::file_type::not_found) fail(code.value());
  if (path.ends_with('/')) fail(EISDIR);
  const fs::path folder = fs::path(path).parent_path();
  const fs::path inside =
      folder.empty() ? "." : folder / "";  // the slash refuses what is no folder
  if (access(inside.c_str(), W_OK | X_OK) != 0) fail(errno);
}

}  // namespace seqattn::cli
