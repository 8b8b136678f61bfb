// How long OpenMP's threads spin before they sleep, set before libgomp reads it (see cli/CMakeLists.txt).
#include <cstdlib>

namespace {

// Longer than the gaps between the loops of one token, far shorter than a time slice. Decoding on two cores, quiet: 189
// tokens/s with libgomp's own 300,000, 158 with 5,000, 95 with 1,000; with two compilers beside it: 3, about 30, 46.
constexpr const char* kSpins = "5000";

__attribute__((constructor)) void set_wait_policy() {
  if (std::getenv("OMP_WAIT_POLICY") != nullptr || std::getenv("GOMP_SPINCOUNT") != nullptr) return;
  setenv("GOMP_SPINCOUNT", kSpins, 0);
  setenv("MNEME_SPINCOUNT_IS_OURS", "1", 1);  // programs that we start wait in their own way
}

}  // namespace
