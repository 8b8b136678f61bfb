#include "cli/program/interrupt.h"

#include <csignal>
#include <ctime>

namespace mneme::cli {
namespace {

volatile std::sig_atomic_t flag = 0;

// A second signal ends the program at once. One that comes right behind the first is no second wish: a terminal, a shell
// and programs such as timeout may each send theirs.
constexpr long kOneWish = 500'000'000;  // nanoseconds
timespec first_signal;

extern "C" void on_interrupt(int signal) {
  timespec now;
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  if (flag == 0) {
    first_signal = now;
    flag = 1;
    return;
  }
  if ((now.tv_sec - first_signal.tv_sec) * 1'000'000'000 + now.tv_nsec - first_signal.tv_nsec <
      kOneWish)
    return;
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

}  // namespace

void watch_interrupts() {
  struct sigaction action{};
  action.sa_handler = on_interrupt;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  for (const int signal : {SIGINT, SIGTERM}) {
    // A shell starts background jobs with SIGINT ignored: that stays so.
    struct sigaction before{};
    if (::sigaction(signal, nullptr, &before) == 0 && before.sa_handler == SIG_IGN) continue;
    ::sigaction(signal, &action, nullptr);
  }
}

bool interrupted() noexcept { return flag != 0; }
void resume_after_interrupt() noexcept { flag = 0; }

void stop_if_interrupted() {
  if (interrupted()) throw Interrupted();
}

}  // namespace mneme::cli
