#include "arguments.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <filesystem>
#include <map>
#include <system_error>

#include "seqattn/version.h"

namespace seqattn::cli {
namespace {

const std::map<std::string, Policy> kPolicies{
    {"lru", Policy::kLru}, {"reuse", Policy::kReuse}, {"none", Policy::kNone}};

std::string wrong(const std::string& got, const std::string& expected) {
  return "got " + (got.empty() ? "nothing" : "'" + got + "'") + "; expected " + expected;
}

// Looks at an option's text, so that CLI11 has nothing left to complain of.
CLI::Validator whole_number(std::int64_t least, std::int64_t most) {
  const auto check = [=](std::string& text) -> std::string {
    std::int64_t number = 0;
    const char* const end = text.data() + text.size();
    const auto [stop, failure] = std::from_chars(text.data(), end, number);
    if (failure == std::errc() && stop == end && number >= least && number <= most) return {};
    return wrong(text,
                 "a whole number from " + std::to_string(least) + " to " + std::to_string(most));
  };
  return {check, ""};
}

CLI::Validator name_of_file() {
  const auto check = [](std::string& text) -> std::string {
    return text.empty() ? wrong(text, "the name of a file") : "";
  };
  return {check, ""};
}

CLI::Validator name_of_policy() {
  const auto check = [](std::string& text) -> std::string {
    return kPolicies.contains(text) ? "" : wrong(text, "lru, reuse or none");
  };
  return {check, ""};
}

void declare(CLI::App& app, Arguments& arguments, std::string& policy) {
  CLI::App& replay = *app.add_subcommand(
      "replay", "Replays a trace of requests through page tables and a prefix cache.");
  replay.footer(
      "A trace has one JSON object a line: timestamp (ms), input_length and output_length "
      "(tokens), and\n"
      "hash_ids, one for each 512 tokens of the input. Requests are taken in their order; in each "
      "step\n"
      "every running one generates a token. No keys or values are computed.\n"
      "\n"
      "Status: 0; 1 for a trace or a file that cannot be used; 2 for arguments that are wrong.");
  constexpr std::int64_t kMost = (std::int64_t{1} << 31) - 1;
  ReplayOptions& options = arguments.options;
  replay.add_option("TRACE", arguments.trace, "The trace, a file of JSON lines")
      ->required()
      ->check(name_of_file())
      ->type_name("");
  const auto number = [&](const char* name, auto& value, std::int64_t least, std::int64_t most,
                          const char* text) {
    replay.add_option(name, value, text)
        ->check(whole_number(least, most))
        ->type_name("NUMBER")
        ->capture_default_str();
  };
  number("--pages", options.num_pages, 0, kMost, "Pages of the pool; 0 for as many as it takes");
  number("--page-size", options.page_size, 1, 1 << 20, "Tokens a page");
  replay
      .add_option("--policy", policy,
                  "Which prefixes go first: lru, those not used for longest; reuse, those that no "
                  "second request has found, then as lru; none, no cache at all")
      ->check(name_of_policy())
      ->type_name("NAME")
      ->capture_default_str();
  number("--concurrency", options.concurrency, 1, kMost, "Requests that run side by side");
  const auto flag = [&](const char* name, bool& value, const char* text) {
    replay.add_flag(name, value, text)->disable_flag_override();
  };
  flag("--cache-output", options.cache_output, "Give generated tokens to the cache as well");
  replay
      .add_option("--plot", arguments.plot,
                  "Write a PNG of pages in use, cached and free over time")
      ->check(name_of_file())
      ->type_name("FILE");
  flag("--json", arguments.as_json, "Print JSON instead of a table");
  flag("--strict", arguments.is_strict, "Stop at the first malformed line");
}

// What CLI11 found wrong, in our words: its own change with its versions.
std::string sentence(const CLI::App& app, const CLI::ParseError& error) {
  std::string text = error.what();
  const std::string option = text.substr(0, text.find_first_of(": "));
  if (dynamic_cast<const CLI::ArgumentMismatch*>(&error) != nullptr) {
    if (text.find("override") != std::string::npos) return "--" + option + ": takes no value";
    const bool is_missing = text.find("missing") != std::string::npos;
    return option + (is_missing ? ": got no value; expected one" : ": given twice; expected once");
  }
  if (dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr) {
    const std::vector<std::string> rest = app.remaining(/*recurse=*/true);
    if (rest.empty()) return text;
    if (rest.front().starts_with('-')) return rest.front() + ": no such option";
    return "got '" + rest.front() + "' behind the trace; expected one trace";
  }
  if (dynamic_cast<const CLI::RequiredError*>(&error) != nullptr) {
    return "TRACE: got nothing; expected a file of JSON lines";
  }
  return text;  // of our validators
}

}  // namespace

std::optional<Arguments> parse_arguments(std::vector<std::string> given, std::ostream& out) {
  CLI::App app("Sequence-level attention over paged KV caches.", "seqattn");
  app.set_version_flag("--version", std::string(version()));
  Arguments arguments;
  std::string policy = "lru";
  declare(app, arguments, policy);
  if (given.empty()) throw UsageError("expected a command: replay");
  if (!given.front().starts_with('-') && given.front() != "replay") {
    throw UsageError("got the command '" + given.front() + "'; expected replay");
  }
  std::reverse(given.begin(), given.end());  // as CLI11 takes them
  try {
    app.parse(given);
  } catch (const CLI::Success& asked) {  // help or version
    app.exit(asked, out, out);
    return std::nullopt;
  } catch (const CLI::ParseError& error) {
    throw UsageError(sentence(app, error));
  }
  if (app.get_subcommands().empty()) throw UsageError("expected a command: replay");
  std::error_code missing;  // of a file that is not there, which no other is
  if (std::filesystem::equivalent(arguments.trace, arguments.plot, missing)) {
    throw UsageError("--plot: got '" + arguments.plot +
                     "', which is the trace; expected another file");
  }
  arguments.options.policy = kPolicies.at(policy);
  return arguments;
}

}  // namespace seqattn::cli
