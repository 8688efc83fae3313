#pragma once

#include <cstdio>
#include <fstream>
#include <stdexcept>
#include <string>

namespace seqattn::bench {

// JSON, written front to back: open(), then fields, then close().
class JsonWriter {
 public:
  void open(const std::string& key, char bracket) {  // '{' or '['
    begin(key);
    text_ += bracket;
    closing_ += bracket == '{' ? '}' : ']';
    is_first_ = true;
  }
  void close() {
    text_ += '\n' + std::string(closing_.size() - 1, ' ') + closing_.back();
    closing_.pop_back();
    is_first_ = false;
  }
  void field(const std::string& key, const std::string& value) {
    begin(key);
    quote(value);
  }
  void field(const std::string& key, double value) {
    begin(key);
    char buffer[32];
    std::snprintf(buffer, sizeof buffer, "%.6g", value);
    text_ += buffer;
  }
  void flag(const std::string& key, bool value) {
    begin(key);
    text_ += value ? "true" : "false";
  }
  // Throws std::runtime_error where the file cannot be written.
  void save(const std::string& path) const {
    std::ofstream file(path);
    file << text_ << '\n';
    if (!file.flush()) throw std::runtime_error("cannot write " + path);
  }

 private:
  // The comma and the key; inside [ ] keys are empty.
  void begin(const std::string& key) {
    if (!closing_.empty()) {
      text_ += (is_first_ ? "\n" : ",\n") + std::string(closing_.size(), ' ');
    }
    is_first_ = false;
    if (key.empty()) return;
    quote(key);
    text_ += ": ";
  }
  void quote(const std::string& value) {
    text_ += '"';
    for (const char c : value) {
      if (c == '"' || c == '\\') text_ += '\\';
      text_ += c < ' ' ? ' ' : c;
    }
    text_ += '"';
  }

  std::string text_, closing_;
  bool is_first_ = true;
};

}  // namespace seqattn::bench
