#pragma once

#include <iosfwd>
#include <string>
#include <vector>

namespace seqattn::cli {

// The program: its arguments without its name, what it prints, and its exit status: 0, 1 for what
// goes wrong in a run, more for wrong arguments. `is_terminal` tells whether `err` is one: then it
// gets a progress bar.
int run_command(std::vector<std::string> arguments, std::ostream& out, std::ostream& err,
                bool is_terminal);

}  // namespace seqattn::cli
