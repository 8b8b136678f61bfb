#include "cli/program/run.h"

#if defined(__GLIBC__)
#include <malloc.h>
#endif

int main(int argc, char** argv) {
#if defined(__GLIBC__)
  // Numbers of one step are freed and wanted again by the next: handed back to the system in between, each page would be
  // cleared anew.
  mallopt(M_MMAP_THRESHOLD, 16 << 20);
  mallopt(M_TRIM_THRESHOLD, 32 << 20);
#endif
  return mneme::cli::run(argc, argv);
}
