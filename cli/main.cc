#include <unistd.h>

#include <iostream>

#include "command.h"

int main(int argc, char** argv) {
  std::ios::sync_with_stdio(false);
  return seqattn::cli::run_command({argv + 1, argv + argc}, std::cout, std::cerr,
                                   isatty(STDERR_FILENO) == 1);
}
