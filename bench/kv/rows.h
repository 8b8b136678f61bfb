// Rows: what every suite on pipelines tells of each of them, as a table, as JSON and as lines of a file, with what is
// needed to find a figure again.
#pragma once

#include "mneme/core/describe.h"
#include "mneme/models/language_model.h"

#include "bench/kv/context.h"
#include "bench/kv/pipelines.h"
#include "bench/statistics/bootstrap.h"
#include "bench/suite.h"
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mneme::bench {

/// The options that all suites on pipelines have.
struct KvOptions {
  std::string kv, compute = "automatic", prefill = "shared", jsonl, plot;
  std::int64_t chunk = 512;
};
void describe_kv(Describe& d, KvOptions& o);

/// The base model of a suite, or the one with the adapter that was asked for. Before it is loaded, throws Error(io) where a
/// file that the options name cannot be written.
std::unique_ptr<LanguageModel> load_model(const SuiteSetup& setup, const KvOptions& options);
ContextOptions context_options(const SuiteSetup& setup, const KvOptions& options);

/// What the contexts of a pipeline took.
class Footprint {
 public:
  void add(const CompressedContext& context);
  void add_decoding(std::int64_t tokens, double seconds);

  [[nodiscard]] std::int64_t contexts() const { return contexts_; }
  /// Means over the contexts; 0 where there were none.
  [[nodiscard]] double bytes() const { return mean(bytes_); }
  [[nodiscard]] double kept() const { return mean(kept_); }
  [[nodiscard]] double tokens() const { return mean(tokens_); }
  [[nodiscard]] double observe_seconds() const { return mean(observe_seconds_); }
  [[nodiscard]] double most_bytes() const { return most_bytes_; }
  [[nodiscard]] bool shared() const { return shared_; }
  [[nodiscard]] double prefill_tokens_per_s() const {
    return seconds_ > 0 ? tokens_ / seconds_ : 0;
  }
  [[nodiscard]] double decode_tokens_per_s() const {
    return decode_seconds_ > 0 ? decoded_ / decode_seconds_ : 0;
  }

 private:
  [[nodiscard]] double mean(double sum) const {
    return contexts_ > 0 ? sum / static_cast<double>(contexts_) : 0;
  }
  std::int64_t contexts_ = 0;
  double bytes_ = 0, most_bytes_ = 0, kept_ = 0, tokens_ = 0, seconds_ = 0, observe_seconds_ = 0;
  double decoded_ = 0, decode_seconds_ = 0;
  bool shared_ = false;
};

/// A figure of a row; an interval that is no wider than its value is not printed.
struct Score {
  std::string name;  ///< of the column and in JSON
  Estimate value;
  int digits = 3;  ///< behind the point
};

/// One pipeline, with one length where a suite has several.
struct KvRow {
  std::string pipeline;
  std::string part;     ///< what it is of ("1024 tokens"); rows of one part are set side by side
  std::string refusal;  ///< why it was not measured, or only in part
  std::vector<Score> scores;
  Footprint footprint;
  nlohmann::json more = nlohmann::json::object();  ///< further figures, for programs
};

/// Rows with the same `part` and a full cache among them: what share of its bytes a row takes, 1 for itself; nothing
/// where it was not measured.
[[nodiscard]] std::optional<double> share_of_full(const KvRow& row, std::span<const KvRow> rows);

/// Everything that a row can be found again by.
struct KvRun {
  std::string suite;
  nlohmann::json options;  ///< of the suite, as given and by default
  std::string question;    ///< "after" or "before" the compression
  std::uint64_t seed = 0;
  const LanguageModel* model = nullptr;
};

/// The options of a suite as JSON: numbers and words as themselves.
template <class T>
nlohmann::json options_json(typename T::Options options) {
  Describe d;
  T::describe(d, options);
  nlohmann::json out = nlohmann::json::object();
  for (const auto& argument : d.values()) {
    if (const auto* text = std::get_if<std::string>(&argument.value.content)) {
      out[argument.key] = *text;
    } else {
      out[argument.key] = nlohmann::json::parse(print(argument.value), nullptr, false);
      if (out[argument.key].is_discarded()) out[argument.key] = print(argument.value);
    }
  }
  return out;
}

/// The rows as JSON, each with all of `run` in it.
[[nodiscard]] nlohmann::json rows_json(const KvRun& run, std::span<const KvRow> rows);

/// A table a part. Refused rows say why.
[[nodiscard]] std::string rows_text(std::span<const KvRow> rows);

/// Tables, JSON and, where `options` names a file, a line of JSON a row appended to it. `further` stands behind the
/// tables; the picture is written where a file is named for it. Throws Error(io).
[[nodiscard]] SuiteReport kv_report(const KvRun& run, const KvOptions& options,
                                    std::span<const KvRow> rows, const std::string& further,
                                    const std::string& picture);

/// Mean with its interval over samples; NaN without any.
[[nodiscard]] Estimate estimated_mean(std::span<const double> x);

/// Mean of x - y over samples, resampled in pairs; NaN without any.
[[nodiscard]] Estimate estimated_difference(std::span<const double> x, std::span<const double> y);

/// A text as a cell of a table: a bar would end it.
[[nodiscard]] std::string table_cell(std::string_view text);

/// "2.5 MiB".
[[nodiscard]] std::string bytes_text(double bytes);

}  // namespace mneme::bench
