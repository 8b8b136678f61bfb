// Help: what `mneme --help` and `mneme VERB --help` print, made from the declarations.
#pragma once

#include "cli/program/verb.h"
#include <memory>
#include <string>
#include <vector>

namespace mneme::cli {

/// "mneme ask [FLAG...] FILE... QUESTION"
std::string usage_line(const About& about);

/// The page of one verb; `own` are its flags, `everywhere` those of all.
std::string verb_help(const About& about, const Flags& own, const Flags& everywhere);

/// The page of the program.
std::string overview(const std::vector<std::unique_ptr<Verb>>& verbs, const Flags& everywhere);

}  // namespace mneme::cli
