#include "mneme/kernels/timing.h"

#include <chrono>

namespace mneme::kernels {
namespace {

struct Account {
  bool on = false, within = false;
  std::int64_t nanoseconds = 0;
};
thread_local Account account;

std::int64_t now() noexcept {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace

void time_kernels(bool on) noexcept { account = Account{on, false, on ? 0 : account.nanoseconds}; }

double seconds_in_kernels() noexcept { return static_cast<double>(account.nanoseconds) * 1e-9; }

Timed::Timed() noexcept : began_(0) {
  if (!account.on || account.within) return;
  account.within = true;
  began_ = now();
}

Timed::~Timed() {
  if (began_ == 0) return;
  account.nanoseconds += now() - began_;
  account.within = false;
}

}  // namespace mneme::kernels
