#include <stdexcept>

#include "ggml_side.h"

// Stands in for ggml_side.cc in builds without SEQATTN_GGML_DIR.
namespace seqattn::bench {

struct GgmlSide::Graphs {};

GgmlSide::GgmlSide(const CpuCase&, const Inputs&, Cache) {
  throw std::logic_error("GgmlSide: this build has no ggml");
}
GgmlSide::~GgmlSide() = default;
void GgmlSide::use_threads(int) {}
void GgmlSide::run(int) {}
std::vector<float> GgmlSide::out() const { return {}; }
bool has_ggml() { return false; }
std::string ggml_version() { return "not in this build"; }

}  // namespace seqattn::bench
