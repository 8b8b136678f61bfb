// The program: finds the verb, gathers its settings, runs it, and turns every failure into one line.
#pragma once

namespace mneme::cli {

/// Runs `mneme` with these arguments over the registry that is linked in. Returns the exit status: 0 done, 1 failed
/// (one line on stderr says why), 2 wrong usage. Never throws.
///
/// The first Ctrl-C (or SIGTERM) lets the work at hand come to a clean end, with status 1 and the line "interrupted";
/// the second ends the process at once. When whoever reads the output is gone (`| head`) it ends with status 1 and no
/// line.
int run(int argc, char** argv);

}  // namespace mneme::cli
