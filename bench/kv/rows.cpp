#include "bench/kv/rows.h"

#include "mneme/core/error.h"
#include "mneme/kernels/level.h"

#include <ATen/Parallel.h>

#include "bench/machine/limits.h"
#include "bench/writable.h"
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <fmt/format.h>
#include <fstream>
#include <limits>

namespace mneme::bench {
namespace {

using nlohmann::json;

/// What of the sources this was built from is checked out now ("1a2b3c4+changes"); empty without git or a checkout.
std::string commit_now() {
  const auto said = [](const char* command) {
    std::string out;
    auto* from = ::popen(command, "r");
    if (!from) return out;
    std::array<char, 256> some{};
    for (std::size_t n = 0; (n = std::fread(some.data(), 1, some.size(), from)) > 0;)
      out.append(some.data(), n);
    ::pclose(from);
    return out;
  };
  auto commit = said("git -C '" MNEME_CHECKOUT "' rev-parse --short HEAD 2>/dev/null");
  while (!commit.empty() && commit.back() == '\n') commit.pop_back();
  if (!commit.empty() &&
      !said("git -C '" MNEME_CHECKOUT "' status --porcelain --untracked-files=no 2>/dev/null")
           .empty())
    commit += "+changes";
  return commit;
}

/// JSON has no number for what is not finite.
json number_json(double x) { return std::isfinite(x) ? json(x) : json(nullptr); }

json estimate_json(const Estimate& e) {
  return {
      {"value", number_json(e.value)}, {"low", number_json(e.low)}, {"high", number_json(e.high)}};
}

std::string score_text(const Score& score) {
  const auto& e = score.value;
  if (!std::isfinite(e.value)) return "";
  if (e.low == e.high) return fmt::format("{:.{}f}", e.value, score.digits);
  return fmt::format("{0:.{3}f} [{1:.{3}f}, {2:.{3}f}]", e.value, e.low, e.high, score.digits);
}

std::string rate_text(double x) { return x > 0 ? fmt::format("{:.0f}", x) : ""; }

/// The columns of a part, each once, in the order in which rows bring them.
std::vector<std::string> columns_of(std::span<const KvRow> rows, std::string_view part) {
  std::vector<std::string> out;
  for (const auto& row : rows) {
    if (row.part != part) continue;
    for (const auto& score : row.scores) {
      if (std::find(out.begin(), out.end(), score.name) == out.end()) out.push_back(score.name);
    }
  }
  return out;
}

void table(std::string& out, std::span<const KvRow> rows, std::string_view part) {
  const auto columns = columns_of(rows, part);
  const bool observed = std::any_of(rows.begin(), rows.end(), [&](const KvRow& row) {
    return row.part == part && row.footprint.observe_seconds() > 0;
  });
  if (!part.empty()) out += fmt::format("### {}\n\n", part);
  out += "| pipeline |";
  for (const auto& column : columns) out += fmt::format(" {} |", column);
  out += " bytes | of full | at most | entries | prefill tok/s | decode tok/s |";
  if (observed) out += " observing, s |";
  out += " note |\n|---|";
  for (std::size_t i = 0; i < columns.size() + 6 + (observed ? 1 : 0); ++i) out += "--:|";
  out += "---|\n";
  for (const auto& row : rows) {
    if (row.part != part) continue;
    const auto& used = row.footprint;
    out += fmt::format("| {} |", table_cell(row.pipeline));
    for (const auto& column : columns) {
      const auto score = std::find_if(row.scores.begin(), row.scores.end(),
                                      [&](const Score& s) { return s.name == column; });
      out += fmt::format(" {} |", score == row.scores.end() ? "" : score_text(*score));
    }
    if (used.contexts() > 0) {
      const auto share = share_of_full(row, rows);
      out += fmt::format(" {} | {} | {} | {:.0f} | {} | {} |", bytes_text(used.bytes()),
                         share ? fmt::format("{:.3f}", *share) : "", bytes_text(used.most_bytes()),
                         used.kept(), rate_text(used.prefill_tokens_per_s()),
                         rate_text(used.decode_tokens_per_s()));
      if (observed) out += fmt::format(" {:.3f} |", used.observe_seconds());
    } else {
      out += observed ? " | | | | | | |" : " | | | | | |";
    }
    out += fmt::format(" {} |\n", row.refusal.empty() ? "" : "refused: " + row.refusal);
  }
  out += "\n";
}

}  // namespace

void describe_kv(Describe& d, KvOptions& o) {
  d("kv", o.kv,
    "ways of keeping keys and values, specs separated by ';'; the full cache is always the first "
    "row");
  d("compute", o.compute, one_of({"automatic", "f32", "bf16", "int16", "int8"}),
    "number type of products, the same for every row");
  d("prefill", o.prefill, one_of({"shared", "own"}),
    "shared: those that cut a context at its end share one reading of it; own: each reads for "
    "itself");
  d("chunk", o.chunk, at_least(1), "tokens of one pass");
  d("jsonl", o.jsonl, "file that gets a line of JSON a row");
  d("plot", o.plot, "file that gets a picture, as SVG");
}

std::unique_ptr<LanguageModel> load_model(const SuiteSetup& setup, const KvOptions& options) {
  check_writable(options.jsonl);
  check_writable(options.plot);
  LoadOptions load;
  load.adapter = setup.adapter;
  load.compute = options.compute == "f32"     ? Compute::f32
                 : options.compute == "bf16"  ? Compute::bf16
                 : options.compute == "int16" ? Compute::int16
                 : options.compute == "int8"  ? Compute::int8
                                              : Compute::automatic;
  return load_language_model(setup.language_model, load);
}

ContextOptions context_options(const SuiteSetup& setup, const KvOptions& options) {
  return {options.chunk, options.prefill == "own", setup.between};
}

void Footprint::add(const CompressedContext& context) {
  ++contexts_;
  bytes_ += static_cast<double>(context.bytes);
  most_bytes_ = std::max(most_bytes_, static_cast<double>(context.most_bytes));
  kept_ += context.kept;
  tokens_ += static_cast<double>(context.tokens);
  seconds_ += context.seconds;
  observe_seconds_ += context.observe_seconds;
  shared_ = context.shared;
}

void Footprint::add_decoding(std::int64_t tokens, double seconds) {
  decoded_ += static_cast<double>(tokens);
  decode_seconds_ += seconds;
}

std::optional<double> share_of_full(const KvRow& row, std::span<const KvRow> rows) {
  const auto full = std::find_if(rows.begin(), rows.end(), [&](const KvRow& other) {
    return other.part == row.part && other.pipeline == kFullCache;
  });
  if (full == rows.end() || full->footprint.bytes() <= 0 || row.footprint.contexts() == 0)
    return std::nullopt;
  return row.footprint.bytes() / full->footprint.bytes();
}

json rows_json(const KvRun& run, std::span<const KvRow> rows) {
  const json found_by = {{"suite", run.suite},
                         {"options", run.options},
                         {"question", run.question},
                         {"seed", run.seed},
                         {"model", run.model->name},
                         {"model_digest", run.model->digest},
                         {"tokenizer_digest", run.model->tokenizer->digest()},
                         {"compute", run.options.value("compute", "automatic")},
                         {"level", kernels::name(kernels::level())},
                         {"cpu", kernels::cpu_model()},
                         {"threads", at::get_num_threads()},
                         {"load", machine_load()},
                         {"commit", commit_now()}};
  json out = json::array();
  for (const auto& row : rows) {
    auto one = found_by;
    one.update({{"pipeline", row.pipeline}, {"part", row.part}, {"refusal", row.refusal}});
    one["scores"] = json::object();
    for (const auto& score : row.scores) one["scores"][score.name] = estimate_json(score.value);
    const auto& used = row.footprint;
    one["contexts"] = used.contexts();
    if (used.contexts() > 0) {
      const auto share = share_of_full(row, rows);
      one.update({{"bytes", used.bytes()},
                  {"most_bytes", used.most_bytes()},
                  {"share_of_full", share ? json(*share) : json(nullptr)},
                  {"entries", used.kept()},
                  {"context_tokens", used.tokens()},
                  {"prefill", used.shared() ? "shared" : "own"},
                  {"prefill_tokens_per_s", used.prefill_tokens_per_s()},
                  {"decode_tokens_per_s", used.decode_tokens_per_s()},
                  {"observe_s", used.observe_seconds()}});
    }
    one.update(row.more);
    out.push_back(std::move(one));
  }
  return out;
}

std::string rows_text(std::span<const KvRow> rows) {
  std::vector<std::string> parts;
  for (const auto& row : rows) {
    if (std::find(parts.begin(), parts.end(), row.part) == parts.end()) parts.push_back(row.part);
  }
  std::string out;
  for (const auto& part : parts) table(out, rows, part);
  return out;
}

SuiteReport kv_report(const KvRun& run, const KvOptions& options, std::span<const KvRow> rows,
                      const std::string& further, const std::string& picture) {
  SuiteReport out;
  auto all = rows_json(run, rows);
  if (!options.jsonl.empty()) {
    std::ofstream lines(options.jsonl, std::ios::app);
    for (const auto& row : all) lines << row.dump() << '\n';
    if (!lines.flush()) throw Error(Errc::io, fmt::format("{}: cannot be written", options.jsonl));
  }
  if (!options.plot.empty()) {
    std::ofstream file(options.plot, std::ios::trunc);
    file << picture;
    if (!file.flush()) throw Error(Errc::io, fmt::format("{}: cannot be written", options.plot));
  }
  const auto& first = all.front();
  out.text = fmt::format(
      "{}; products in {}, level {}, {} threads; the question {} the compression; seed {}, commit "
      "{}. Intervals: 95 %, paired bootstrap.\n\n{}{}",
      run.model->name, first["compute"].get<std::string>(), first["level"].get<std::string>(),
      first["threads"].get<int>(), run.question == "before" ? "stands before" : "comes after",
      run.seed, first["commit"].get<std::string>(), rows_text(rows), further);
  out.figures = {{"rows", std::move(all)}};
  return out;
}

Estimate estimated_mean(std::span<const double> x) {
  constexpr auto kNothing = std::numeric_limits<double>::quiet_NaN();
  if (x.empty()) return {kNothing, kNothing, kNothing};
  return Bootstrap(x.size()).mean(x);
}

Estimate estimated_difference(std::span<const double> x, std::span<const double> y) {
  MNEME_ASSERT(x.size() == y.size());
  std::vector<double> out(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) out[i] = x[i] - y[i];
  return estimated_mean(out);
}

std::string table_cell(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '|') out += '\\';
    out += c;
  }
  return out;
}

std::string bytes_text(double bytes) {
  constexpr std::array<std::string_view, 4> kUnits = {"B", "KiB", "MiB", "GiB"};
  std::size_t unit = 0;
  while (bytes >= 1024 && unit + 1 < kUnits.size()) {
    bytes /= 1024;
    ++unit;
  }
  return fmt::format("{:.{}f} {}", bytes, unit == 0 ? 0 : 1, kUnits[unit]);
}

}  // namespace mneme::bench
