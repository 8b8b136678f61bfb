// How long OpenMP's threads spin before they sleep, set before libgomp reads it (see cli/CMakeLists.txt).
#include <cstdlib>

namespace {

// About ten microseconds: longer than the gaps between the loops of one token, far shorter than a time slice.
constexpr const char* kSpins = "1000";

__attribute__((constructor)) void set_wait_policy() {
  if (std::getenv("OMP_WAIT_POLICY") == nullptr) setenv("GOMP_SPINCOUNT", kSpins, 0);
}

}  // namespace
