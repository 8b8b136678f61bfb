#include "cli/program/interrupt.h"

#include <csignal>

namespace mneme::cli {
namespace {

volatile std::sig_atomic_t flag = 0;

extern "C" void on_interrupt(int signal) {
  if (flag) {
    std::signal(signal, SIG_DFL);
    std::raise(signal);
    return;
  }
  flag = 1;
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
