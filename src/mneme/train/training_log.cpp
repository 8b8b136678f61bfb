#include "mneme/train/training_log.h"

#include "mneme/core/error.h"
#include "mneme/core/log.h"
#include "mneme/train/plot.h"
#include "mneme/weights/atomic_file.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <set>
#include <span>

namespace mneme {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kBegin = R"({"step":)";  // of every line

Json as_json(const StepReport& report) {
  auto terms = Json::object();
  for (const auto& [name, value] : report.loss.terms) terms[name] = value;
  return {{"step", report.step},
          {"loss", report.loss.total},
          {"terms", terms},
          {"lr", report.rate},
          {"gradient_norm", report.norm},
          {"tokens", report.tokens},
          {"tokens_per_s",
           report.seconds > 0 ? static_cast<double>(report.tokens) / report.seconds : 0.0}};
}

Json as_json(const ValidationReport& report) {
  return {{"step", report.step}, {"validation", report.figures}, {"seconds", report.seconds}};
}

/// The steps from 1 to `last` that are not in `there`, as "3-5, 9"; empty if there are none.
std::string missing_steps(const std::set<std::int64_t>& there, std::int64_t last) {
  std::string out;
  std::int64_t next = 1;
  const auto up_to = [&](std::int64_t end) {
    if (next >= end) return;
    if (!out.empty()) out += ", ";
    out += next == end - 1 ? fmt::format("{}", next) : fmt::format("{}-{}", next, end - 1);
  };
  for (const auto step : there) {
    up_to(step);
    next = std::max(next, step + 1);
  }
  up_to(last + 1);
  return out;
}

}  // namespace

TrainingLog::TrainingLog(std::filesystem::path path)
    : path_(std::move(path)), out_(path_, std::ios::trunc) {
  if (!out_) throw Error(Errc::io, fmt::format("{}: the log cannot be written", path_.string()));
}

TrainingLog::TrainingLog(std::filesystem::path path, std::int64_t step, std::int64_t validated)
    : path_(std::move(path)) {
  std::string kept;
  std::set<std::int64_t> there;
  std::ifstream in(path_);
  for (std::string line; std::getline(in, line);) {
    const auto entry = Json::parse(line, nullptr, false);
    if (!entry.is_object() || !entry.contains("step") || !entry["step"].is_number_integer())
      continue;
    try {
      const auto at = entry["step"].get<std::int64_t>();
      if (entry.contains("validation")) {
        if (at > validated) continue;
        validations_.push_back({at, entry["validation"].get<std::map<std::string, double>>(),
                                entry.at("seconds").get<double>()});
      } else {
        if (at > step) continue;
        StepReport report;
        report.step = at;
        report.loss.total = entry.at("loss").get<double>();
        for (const auto& [name, value] : entry.at("terms").items()) {
          report.loss.terms.emplace_back(name, value.get<double>());
        }
        steps_.push_back(std::move(report));
        there.insert(at);
      }
    } catch (const Json::exception&) {  // not a line of ours
      continue;
    }
    kept += line + "\n";
  }
  in.close();
  if (const auto missing = missing_steps(there, step); !missing.empty()) {
    log::warn("{}: the checkpoint is of step {}, but the log lacks of the steps before it: {}",
              path_.string(), step, missing);
  }
  AtomicFile file(path_);
  file.write(std::as_bytes(std::span(kept)));
  file.commit();
  out_.open(path_, std::ios::app);
  if (!out_) throw Error(Errc::io, fmt::format("{}: the log cannot be written", path_.string()));
}

bool TrainingLog::is_one(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::string begin(kBegin.size(), '\0');
  in.read(begin.data(), static_cast<std::streamsize>(begin.size()));
  begin.resize(static_cast<std::size_t>(in.gcount()));
  return !in.bad() && in.is_open() && kBegin.starts_with(begin);
}

void TrainingLog::write(const std::string& line) {
  out_ << line << '\n';
  if (!out_.flush())
    throw Error(Errc::io, fmt::format("{}: the log cannot be written", path_.string()));
}

void TrainingLog::add(const StepReport& report) {
  steps_.push_back(report);
  write(as_json(report).dump());
}

void TrainingLog::add(const ValidationReport& report) {
  validations_.push_back(report);
  write(as_json(report).dump());
}

void TrainingLog::sync() const {
  // What was flushed is the file's, whichever descriptor asks for it to be written.
  // Who takes the log away does not want it.
  if (sync_to_disk(path_, O_WRONLY) || errno == ENOENT) return;
  throw Error(Errc::io, fmt::format("{}: the log cannot be written: {}", path_.string(),
                                    std::strerror(errno)));
}

void TrainingLog::plot(const std::filesystem::path& path, std::string_view title) const {
  Panel losses{"loss", {}, false};
  Curve total{"a step", {}};
  std::map<std::string, Curve> terms;
  for (const auto& report : steps_) {
    const auto step = static_cast<double>(report.step);
    total.points.emplace_back(step, report.loss.total);
    for (const auto& [name, value] : report.loss.terms) {
      auto& curve = terms.try_emplace(name, Curve{name, {}}).first->second;
      curve.points.emplace_back(step, value);
    }
  }
  losses.curves = {total, smoothed(total, 0.9, "smoothed")};
  if (terms.size() > 1) {
    for (const auto& [name, curve] : terms) losses.curves.push_back(smoothed(curve, 0.9, name));
  }
  std::vector<Panel> panels{std::move(losses)};
  std::map<std::string, Curve> figures;
  for (const auto& report : validations_) {
    for (const auto& [name, value] : report.figures) {
      auto& curve = figures.try_emplace(name, Curve{name, {}}).first->second;
      curve.points.emplace_back(static_cast<double>(report.step), value);
    }
  }
  if (!figures.empty()) {
    Panel validation{"validation", {}, true};
    for (const auto& [name, curve] : figures) validation.curves.push_back(curve);
    panels.push_back(std::move(validation));
  }
  const auto svg = plot_svg(title, "steps", panels);
  AtomicFile file(path);
  file.write(std::as_bytes(std::span(svg)));
  file.commit(false);
}

}  // namespace mneme
