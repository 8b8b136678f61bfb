// Ctrl-C: the first asks for a clean end, the second is not to be argued with.
#pragma once

#include <exception>
#include <string>
#include <utility>

namespace mneme::cli {

/// Work was ended by Ctrl-C.
struct Interrupted : std::exception {
  std::string kept;  ///< what of it is there and how to go on, where there is something to say
  Interrupted() = default;
  explicit Interrupted(std::string kept) : kept(std::move(kept)) {}
};

/// From now on the first SIGINT or SIGTERM sets a flag and the second ends the process as it would by default.
void watch_interrupts();

/// Whether the flag is set. Any thread.
[[nodiscard]] bool interrupted() noexcept;

/// Takes the flag back: what it ended was only a part (a reply in a chat).
void resume_after_interrupt() noexcept;

/// Throws Interrupted if the flag is set.
void stop_if_interrupted();

}  // namespace mneme::cli
