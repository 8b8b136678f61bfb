// mneme calibrate: numbers of each head of a model, measured once and kept for the KV stages that use them.
#include "mneme/core/error.h"
#include "mneme/core/registry.h"
#include "mneme/models/locate.h"
#include "mneme/models/profile.h"
#include "mneme/probes/calibration.h"
#include "mneme/text/document.h"
#include "mneme/weights/atomic_file.h"
#include "mneme/weights/digests.h"

#include <ATen/ATen.h>

#include "cli/program/input.h"
#include "cli/program/interrupt.h"
#include "cli/program/output.h"
#include "cli/program/verb.h"
#include <chrono>
#include <filesystem>
#include <fmt/format.h>

namespace mneme::cli {
namespace {

namespace fs = std::filesystem;

/// One calibration as it was asked for.
struct Wanted {
  std::string spec;  ///< canonical
  std::unique_ptr<Calibration> calibration;
};

/// One that is done.
struct Done {
  std::string spec;
  Calibrated result;
  double seconds = 0;
};

/// "qfilter(tokens=3072)" measures the numbers "qfilter" and "qfilter. ...".
bool is_of(std::string_view numbers, std::string_view calibration) {
  return numbers.starts_with(calibration) &&
         (numbers.size() == calibration.size() || numbers[calibration.size()] == '.');
}

class Calibrate final : public Verb {
 public:
  [[nodiscard]] About about() const override {
    return {
        Group::model,
        "calibrate",
        "measure a model's heads once, for KV stages that go by such numbers",
        {{"NAME", "what to measure, with its options if need be; unset: everything", false, true}},
        {"mneme calibrate", "mneme calibrate qfilter --text handbook.txt",
         "mneme calibrate \"key_pca(space=pre)\" --model model.gguf --json",
         "mneme calibrate --list"},
        "Runs the model over a text and keeps what it finds of each head in the model's head "
        "profile, by the digest of its weights; numbers of other names stay. The profile lies in "
        "the folder MNEME_PROFILES, else in ${XDG_CACHE_HOME:-~/.cache}/mneme/profiles."};
  }

  void declare(Flags& flags) override {
    flags("--model", model_, "MODEL", "a known name, a GGUF file or a model folder");
    flags("--adapter", adapter_, "NAME",
          "adapter that the model is measured with: a known name, a file of `mneme train`, none");
    flags("--text", text_, "PATH",
          "a plain text, or a folder of them, to run the model over; unset: mneme's own manual");
    flags("-o,--output", output_, "FILE", "the head profile; unset: where KV stages look for it");
    flags("--list", list_, "only list what can be measured, and what of it is there");
    flags("--json", json_, "print one JSON object");
    flags.find("list")->in_config = false;
    flags.find("list")->in_environment = false;
  }

  void run(const Invocation& call) override {
    auto wanted = chosen(call.arguments);
    LoadOptions options;
    options.adapter = adapter_;
    if (list_) {
      list(*load_language_model(model_, options));
      return;
    }
    const auto text = calibration_text();
    const auto model = load_language_model(model_, options);
    const fs::path path = output_.empty() ? profile_path(model->digest) : fs::path(output_);
    // Whether it can be kept is found out before what takes long.
    auto profile = begin(*model, path);
    const auto text_digest = sha256_hex(std::string_view(text.text)).substr(0, 16);
    std::vector<Done> done;
    for (const auto& [spec, calibration] : wanted) {
      const auto start = std::chrono::steady_clock::now();
      Calibrated result;
      try {
        result = calibration->run(*model, text, stop_if_interrupted);
        stop_if_interrupted();
      } catch (const Interrupted&) {
        if (done.empty()) throw;
        throw Interrupted(fmt::format("{} keeps what was measured before", path.string()));
      }
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
      const auto name = spec.substr(0, spec.find('('));
      for (const auto& [entry, numbers] : result.numbers) {
        MNEME_ASSERT(is_of(entry, name));  // else one calibration would overwrite another's
        profile.numbers[entry] = numbers;
        profile.measured[entry] =
            fmt::format("{} on {} (SHA-256 {}...): {}", spec, text.name, text_digest, result.how);
      }
      profile.save(path);
      done.push_back({spec, std::move(result), took.count()});
    }
    if (json_) {
      print(*model, path, text, done);
    } else if (!call.everywhere.quiet) {
      describe(*model, path, done);
    }
  }

 private:
  static std::vector<Wanted> chosen(const std::vector<std::string>& arguments) {
    std::vector<std::string> specs = arguments;
    if (specs.empty()) specs = registry().names(std::string(Calibration::kKind));
    std::vector<Wanted> out;
    for (const auto& text : specs) {
      const auto stage = parse_stage(text);
      auto spec = mneme::print(registry().find(Calibration::kKind, stage.name).canonicalize(stage));
      out.push_back({std::move(spec), registry().make<Calibration>(stage)});
    }
    return out;
  }

  CalibrationText calibration_text() const {
    std::vector<fs::path> files;
    CalibrationText out;
    if (text_.empty()) {
      files = files_beside_program("docs", ".md");
      if (files.empty())
        throw Error(Errc::usage,
                    "--text is missing, and mneme's own manual is not beside the program: give a "
                    "plain text of a few thousand words");
      out.name = "mneme's manual";
    } else if (text_ == "-") {
      out.name = "standard input";
      out.text = read_input();
      check_utf8(out.text, out.name);
    } else {
      files = list_documents(text_).files;
      if (files.empty())
        throw Error(Errc::invalid, fmt::format("--text: {} holds no texts", text_));
      out.name = text_;
    }
    for (const auto& file : files) {
      if (!out.text.empty()) out.text += "\n\n";
      out.text += read_document(file).text;
    }
    return out;
  }

  /// The profile that is there, or an empty one that can be written.
  static HeadProfile begin(const LanguageModel& model, const fs::path& path) {
    if (path.has_parent_path()) {
      std::error_code failed;
      fs::create_directories(path.parent_path(), failed);
      if (failed) {
        throw Error(Errc::io,
                    fmt::format("{}: the folder cannot be made: {}: give another by -o or "
                                "MNEME_PROFILES",
                                path.parent_path().string(), failed.message()));
      }
    }
    HeadProfile out;
    out.model_digest = model.digest;
    if (std::error_code failed; fs::exists(path, failed)) {
      out = HeadProfile::load(path);
      check_profile(out, model, path);
    }
    const AtomicFile can_be_written(path);
    return out;
  }

  void list(const LanguageModel& model) const {
    std::shared_ptr<const HeadProfile> profile;
    if (output_.empty()) {
      profile = head_profile(model);
    } else if (std::error_code failed; fs::exists(output_, failed)) {
      auto loaded = std::make_shared<HeadProfile>(HeadProfile::load(output_));
      check_profile(*loaded, model, output_);
      profile = std::move(loaded);
    }
    auto all = Json::array();
    for (const auto* component : registry().components(Calibration::kKind)) {
      auto kept = Json::array();
      if (profile) {
        for (const auto& [name, numbers] : profile->numbers) {
          if (!is_of(name, component->name)) continue;
          const auto how = profile->measured.find(name);
          kept.push_back({{"name", name},
                          {"sizes", numbers.sizes().vec()},
                          {"measured", how == profile->measured.end() ? "" : how->second}});
        }
      }
      if (!json_) {
        say("{:<16} {}\n", bold(component->name), component->help);
        for (const auto& entry : kept)
          say("  {:<24} {}\n", entry["name"].get<std::string>(),
              faint(one_line(entry["measured"].get<std::string>())));
      }
      all.push_back(
          {{"name", component->name}, {"help", component->help}, {"numbers", std::move(kept)}});
    }
    if (json_) print_json({{"model", model.name}, {"calibrations", std::move(all)}});
  }

  static void print(const LanguageModel& model, const fs::path& path, const CalibrationText& text,
                    const std::vector<Done>& done) {
    auto all = Json::array();
    for (const auto& [spec, result, seconds] : done) {
      Json one{{"spec", spec}, {"how", result.how}, {"seconds", seconds}};
      one["numbers"] = Json::object();
      for (const auto& [name, numbers] : result.numbers)
        one["numbers"][name] = numbers.sizes().vec();
      one["figures"] = Json::object();
      for (const auto& [name, figure] : result.figures) one["figures"][name] = figure;
      one["by_layer"] = Json::object();
      for (const auto& [name, figures] : result.by_layer) one["by_layer"][name] = figures;
      all.push_back(std::move(one));
    }
    print_json({{"model", model.name},
                {"model_digest", model.digest},
                {"profile", path.string()},
                {"text", text.name},
                {"calibrations", std::move(all)}});
  }

  static void describe(const LanguageModel& model, const fs::path& path,
                       const std::vector<Done>& done) {
    for (const auto& [spec, result, seconds] : done) {
      say("{}  {}, {}\n", bold(spec), result.how, as_duration(seconds));
      for (const auto& [name, figure] : result.figures) say("  {:<48} {:>10.4g}\n", name, figure);
    }
    say("{}: {} of {}\n", path.string(),
        counted(static_cast<std::int64_t>(done.size()), "calibration"), one_line(model.name));
  }

  std::string model_ = "smollm2", adapter_ = kNoAdapter, text_, output_;
  bool list_ = false, json_ = false;
};

}  // namespace

std::unique_ptr<Verb> calibrate_verb() { return std::make_unique<Calibrate>(); }

}  // namespace mneme::cli
