// Verb: one thing that `mneme` does. cli/<verb>.cpp holds one and ends in
//   std::unique_ptr<Verb> <verb>_verb() { return std::make_unique<...>(); }
#pragma once

#include "cli/program/flags.h"
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace mneme::cli {

/// What stands on the command line beside flags.
struct Positional {
  std::string name;       ///< as usage shows it: "FILE", "QUESTION"
  std::string help;       ///< one line
  bool required = true;   ///< optional ones come last
  bool repeated = false;  ///< takes several: at most one of a verb's
};

/// Where the overview lists a verb.
enum class Group { main_job, memory_file, model, program };

/// What the help of a verb says.
struct About {
  Group group = Group::program;
  std::string name;                     ///< "ask"
  std::string summary;                  ///< one line, without a full stop
  std::vector<Positional> positionals;  ///< in their order
  std::vector<std::string> examples;    ///< whole command lines
  std::string more = {};                ///< a further paragraph, perhaps none
};

/// The settings that every verb has.
struct Everywhere {
  bool quiet = false;
  std::int64_t threads = 0;  ///< 0: as many as the machine offers
  std::uint64_t seed = 0;
  std::string log_level = "warn";
};

/// One call of a verb.
struct Invocation {
  std::vector<std::string> arguments;  ///< positionals, as many as About asks for
  Everywhere everywhere;
  Origins origins;  ///< of the verb's own settings
};

class Verb {
 public:
  virtual ~Verb() = default;
  [[nodiscard]] virtual About about() const = 0;
  /// Where a positional names a part of the verb that has flags of its own: declares those and gives what the help of the
  /// part says. Nothing: there is only the verb's. Throws Error(usage) for a name that is none.
  [[nodiscard]] virtual std::optional<About> part(std::string_view /*positional*/, Flags&) {
    return std::nullopt;
  }
  /// Declares flags that are bound to members of this object.
  virtual void declare(Flags&) {}
  /// Does it. Results go to stdout by output.h. Throws Error on failure, with Errc::usage for a wrong request.
  virtual void run(const Invocation& call) = 0;
};

/// Every verb, by name; generated from the folder.
std::vector<std::unique_ptr<Verb>> all_verbs();

}  // namespace mneme::cli
