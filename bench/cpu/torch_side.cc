#include "torch_side.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <sstream>
#include <stdexcept>

namespace seqattn::bench {
namespace {

struct Pipe {
  int read, write;
};

Pipe make_pipe() {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) throw std::runtime_error("torch: no pipe");
  return {ends[0], ends[1]};
}

}  // namespace

TorchSide::TorchSide(const std::string& python) {
  if (python.empty()) return;
  std::signal(SIGPIPE, SIG_IGN);  // a process that has gone is an error of the next call
  const Pipe requests = make_pipe(), answers = make_pipe();
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, requests.read, STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, answers.write, STDOUT_FILENO);
  std::string program = python, script = SEQATTN_TORCH_PEER;
  char* const arguments[] = {program.data(), script.data(), nullptr};
  const int failed = posix_spawnp(&process_, python.c_str(), &actions, nullptr, arguments, environ);
  posix_spawn_file_actions_destroy(&actions);
  close(requests.read);
  close(answers.write);
  to_ = requests.write;
  from_ = answers.read;
  if (failed != 0) {
    process_ = -1;
    version_ = "no " + python;
    return;
  }
  try {
    const std::string greeting = read_line();
    is_there_ = greeting.rfind("torch ", 0) == 0;
    version_ = greeting.substr(greeting.find(' ') + 1);
  } catch (const std::runtime_error&) {
    version_ = python + " has ended";
  }
}

TorchSide::~TorchSide() {
  for (const int end : {to_, from_}) {
    if (end >= 0) close(end);
  }
  if (process_ > 0) waitpid(process_, nullptr, 0);  // the end of its input is its own
}

void TorchSide::load(const CpuCase& spec, const Inputs& inputs, int layers) {
  std::ostringstream words;
  words << "case " << spec.batch << ' ' << spec.q_len << ' ' << spec.kv_len << ' '
        << spec.num_qo_heads << ' ' << spec.num_kv_heads << ' ' << spec.head_dim << ' '
        << to_string(spec.kv_dtype) << ' ' << layers << '\n';
  const std::string line = words.str();
  write_bytes(line.data(), line.size());
  write_bytes(inputs.queries.data(), inputs.queries.size() * sizeof(float));
  write_bytes(inputs.keys.data(), inputs.keys.size());
  write_bytes(inputs.values.data(), inputs.values.size());
  ask("");
}

void TorchSide::use_threads(int num_threads) { ask("threads " + std::to_string(num_threads)); }

double TorchSide::run(int first, int count) {
  return 1e-9 * std::stod(ask("run " + std::to_string(first) + " " + std::to_string(count)));
}

std::vector<float> TorchSide::out() {
  std::vector<float> values(std::stoul(ask("out")) / sizeof(float));
  read_bytes(values.data(), values.size() * sizeof(float));
  return values;
}

std::string TorchSide::ask(const std::string& request) {
  if (!request.empty()) {
    write_bytes(request.data(), request.size());
    write_bytes("\n", 1);
  }
  const std::string answer = read_line();
  if (answer.rfind("ok", 0) != 0) throw std::runtime_error("torch: " + answer);
  return answer.substr(2);
}

std::string TorchSide::read_line() const {
  std::string line;
  for (char c = 0; read_bytes(&c, 1), c != '\n';) line += c;
  return line;
}

void TorchSide::write_bytes(const void* data, std::size_t size) const {
  const auto* from = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t written = write(to_, from, size);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) throw std::runtime_error("torch: its process has ended");
    from += written;
    size -= static_cast<std::size_t>(written);
  }
}

void TorchSide::read_bytes(void* data, std::size_t size) const {
  auto* to = static_cast<char*>(data);
  while (size > 0) {
    const ssize_t got = read(from_, to, size);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) throw std::runtime_error("torch: its process has ended");
    to += got;
    size -= static_cast<std::size_t>(got);
  }
}

}  // namespace seqattn::bench
