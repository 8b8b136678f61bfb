#include "bench/machine/other_work.h"

#include <algorithm>
#include <fmt/format.h>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <unistd.h>

namespace mneme::bench {
namespace {

double ticks_a_second() { return static_cast<double>(::sysconf(_SC_CLK_TCK)); }

/// Ticks that all processors worked.
double all_ticks() {
  std::ifstream in("/proc/stat");
  std::string cpu;
  double user = 0, nice = 0, system = 0;
  return in >> cpu >> user >> nice >> system ? user + nice + system : 0;
}

/// Ticks of a process, all threads together; 0 of one that is not there.
double ticks_of(const std::string& process) {
  std::ifstream in(fmt::format("/proc/{}/stat", process));
  std::string text;
  std::getline(in, text);
  const auto name_end = text.rfind(')');  // a name may have blanks in it
  if (name_end == std::string::npos) return 0;
  std::istringstream fields(text.substr(name_end + 1));
  constexpr int kBefore = 11;  // state to cmajflt, proc(5)
  std::string skipped;
  for (int i = 0; i < kBefore; ++i) fields >> skipped;
  double user = 0, system = 0;
  return fields >> user >> system ? user + system : 0;
}

}  // namespace

OtherWork::OtherWork(std::vector<int> children)
    : children_(std::move(children)), begin_(std::chrono::steady_clock::now()), before_(others()) {}

double OtherWork::others() const {
  auto ticks = all_ticks() - ticks_of("self");
  for (const auto child : children_) ticks -= ticks_of(std::to_string(child));
  return ticks / ticks_a_second();
}

double OtherWork::processors() const {
  const auto passed =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
  return std::max(0.0, (others() - before_) / passed);
}

double processors_of_others() {
  const OtherWork work;
  std::this_thread::sleep_for(std::chrono::seconds(1));
  return work.processors();
}

}  // namespace mneme::bench
