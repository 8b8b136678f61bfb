#include "mneme/core/error.h"

#include <cstdio>
#include <cstdlib>

namespace mneme {

void assertion_failed(const char* condition, const char* file, int line) {
  std::fprintf(stderr, "mneme: internal error at %s:%d: %s does not hold; please report this\n",
               file, line, condition);
  std::abort();
}

}  // namespace mneme
