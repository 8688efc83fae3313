#pragma once

#include <iosfwd>
#include <string>
#include <vector>

namespace seqattn::cli {

// The program: the arguments `given` without its name, what it prints, and its exit status: 0, 1
// for a trace or a file that cannot be used, 2 for wrong arguments. `is_terminal` tells whether
// `err` is one: then it gets a progress bar.
int run_command(std::vector<std::string> given, std::ostream& out, std::ostream& err,
                bool is_terminal);

}  // namespace seqattn::cli
