#include "cli/program/run.h"

int main(int argc, char** argv) { return mneme::cli::run(argc, argv); }
