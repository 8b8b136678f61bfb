// What a verb that forgets owes whoever asked: deleted is not yet forgotten.
#pragma once

#include "mneme/core/error.h"
#include "mneme/memory/memory_file.h"

namespace mneme::cli {

/// Throws `busy` if what was deleted still stands in the file as bytes: no exit status 0 may say that it is forgotten.
inline void require_cleaned(const ForgetReport& report) {
  if (report.cleaned) return;
  throw Error(Errc::busy,
              "deleted, but its bytes are still in the file, since another process has it open or "
              "the disk is full: the next process that opens it and may write it takes them out");
}

}  // namespace mneme::cli
