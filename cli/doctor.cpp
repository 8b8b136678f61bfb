// mneme doctor: does this machine have what mneme needs, and does it compute rightly?
#include "mneme/core/error.h"
#include "mneme/core/generator.h"
#include "mneme/core/registry.h"
#include "mneme/kernels/level.h"
#include "mneme/kernels/quantized.h"
#include "mneme/models/locate.h"
#include "mneme/weights/checkpoint.h"

#include <ATen/Parallel.h>
#include <torch/version.h>

#include "bench/machine/limits.h"
#include "cli/program/output.h"
#include "cli/program/verb.h"
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fmt/format.h>
#include <functional>
#include <sqlite3.h>
#include <sys/utsname.h>
#include <unistd.h>

namespace mneme::cli {
namespace {

namespace fs = std::filesystem;

/// One thing looked at.
struct Finding {
  std::string what, found;
  bool well = true;
};

/// The folder where digests are remembered; it is made when first needed.
std::pair<fs::path, bool> cache_folder() {
  const auto* cache = std::getenv("XDG_CACHE_HOME");
  const auto* home = std::getenv("HOME");
  if (!(cache && *cache) && !(home && *home))
    return {"(neither XDG_CACHE_HOME nor HOME is set)", false};
  const auto folder = (cache && *cache ? fs::path(cache) : fs::path(home) / ".cache") / "mneme";
  std::error_code error;
  auto there = folder;
  while (!fs::exists(there, error) && there.has_relative_path()) there = there.parent_path();
  return {folder, ::access(there.c_str(), W_OK) == 0};
}

/// The largest error of y = W x at a level, over the largest |y|, against sums in double precision of the unpacked weights.
double product_error(WeightType type) {
  constexpr std::int64_t kRows = 48, kColumns = 576;
  Generator random(7);
  std::vector<float> plain(static_cast<std::size_t>(kRows * kColumns)), x(kColumns), y(kRows);
  for (auto& value : x) value = static_cast<float>(random.uniform() * 2 - 1);
  const auto bytes = row_bytes(type, kColumns) * kRows;
  std::vector<unsigned char> weights(static_cast<std::size_t>(bytes));
  if (type == WeightType::f32) {
    for (auto& value : plain) value = static_cast<float>(random.uniform() * 2 - 1);
    std::memcpy(weights.data(), plain.data(), weights.size());
  } else {
    for (auto& byte : weights) byte = static_cast<unsigned char>(random.uniform() * 256);
    // Scales and minima at the head of each block: halves of 2^-6 (0x2400), and -2^-3 (0xB000) for minima.
    for (std::int64_t at = 0; at < bytes; at += block_bytes(type)) {
      const std::uint16_t scale = 0x2400, minimum = 0xB000;
      std::memcpy(&weights[static_cast<std::size_t>(at)], &scale, 2);
      if (type == WeightType::q4_1)
        std::memcpy(&weights[static_cast<std::size_t>(at) + 2], &minimum, 2);
    }
  }
  kernels::dequantize(type, weights.data(), kRows, kColumns, plain.data());
  kernels::matvec(type, weights.data(), kRows, kColumns, x.data(), 1, y.data());
  double worst = 0, largest = 0;
  for (std::int64_t row = 0; row < kRows; ++row) {
    double sum = 0;
    for (std::int64_t k = 0; k < kColumns; ++k)
      sum += static_cast<double>(plain[static_cast<std::size_t>(row * kColumns + k)]) *
             x[static_cast<std::size_t>(k)];
    worst = std::max(worst, std::abs(sum - y[static_cast<std::size_t>(row)]));
    largest = std::max(largest, std::abs(sum));
  }
  return worst / largest;
}

/// All levels that run here compute products rightly; activations of 8 bits cost up to a percent.
Finding self_test() {
  const auto chosen = kernels::level();
  Finding out{"self-test", "", true};
  for (const auto level : kernels::supported_levels()) {
    kernels::set_level(level);
    double worst = 0;
    for (const auto type : kWeightTypes) {
      if (type == WeightType::f16 || type == WeightType::bf16)
        continue;  // random halves may be no numbers
      const auto error = product_error(type);
      const auto bound = type == WeightType::f32 ? 1e-5 : 0.02;
      worst = std::max(worst, error);
      if (!(error <= bound)) out.well = false;
    }
    out.found += fmt::format("{}{} {}", out.found.empty() ? "" : ", ", kernels::name(level),
                             std::isfinite(worst) ? fmt::format("{:.1e}", worst) : "wrong");
  }
  kernels::set_level(chosen);
  out.found = (out.well ? "products agree with sums in double precision, largest error at "
                        : "products are wrong at ") +
              out.found;
  return out;
}

class Doctor final : public Verb {
 public:
  [[nodiscard]] About about() const override {
    return {Group::program,
            "doctor",
            "check this machine: processor, memory, models, kernels",
            {},
            {"mneme doctor"},
            "Exit status 1 if something that mneme needs is not well."};
  }

  void declare(Flags& flags) override { flags("--json", json_, "print one JSON object"); }

  void run(const Invocation&) override {
    std::vector<Finding> findings;
    const auto add = [&](std::string what, std::string found, bool well = true) {
      findings.push_back({std::move(what), std::move(found), well});
    };
    add("mneme", fmt::format("{}, {} components", MNEME_VERSION, registry().components().size()));
    add("libraries", fmt::format("libtorch {}, SQLite {}", TORCH_VERSION, sqlite3_libversion()));
    utsname system{};
    ::uname(&system);
    add("system", fmt::format("{} {} on {}", system.sysname, system.release, system.machine));
    add("processor", fmt::format("{}, {} online", kernels::cpu_model(),
                                 counted(sysconf(_SC_NPROCESSORS_ONLN), "core")));
    std::string levels;
    for (const auto level : kernels::supported_levels())
      levels += (levels.empty() ? "" : ", ") + std::string(kernels::name(level));
    add("kernels",
        fmt::format("{} in use; this processor runs {}", kernels::name(kernels::level()), levels));
    for (const auto& [kernel, form] : kernels::forms(kernels::level()))
      add(fmt::format("  {}", kernel), std::string(form));
    add("compute type",
        kernels::has_bf16_products()
            ? "bf16 to read and to generate, 16-bit integers to answer from memory"
            : "f32 to read, 16-bit integers to answer from memory: the kernels in use have no bf16 "
              "products");
    add("threads", std::to_string(at::get_num_threads()));
    const auto available = bench::available_memory();
    add("memory",
        fmt::format(
            "{} of {} available", as_size(available),
            as_size(static_cast<std::int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE))),
        available > (std::int64_t{512} << 20));
    const auto models = known_models();
    for (const auto& model : models) {
      try {
        add("model " + model.name, fmt::format("{}, sha256 {}", model.path.string(),
                                               open_checkpoint(model.path)->digest()));
      } catch (const Error& error) {
        add("model " + model.name, error.what(), false);
      }
    }
    for (const auto* name : {"smollm2", "minilm"}) {
      const bool found = std::any_of(models.begin(), models.end(),
                                     [&](const LocatedModel& m) { return m.name == name; });
      if (found) continue;
      try {
        locate_model(name);
      } catch (const Error& error) {
        add(fmt::format("model {}", name), error.what(), false);
      }
    }
    const auto [folder, writable] = cache_folder();
    add("cache",
        folder.string() +
            (writable ? "" : ": cannot be written, so that models are hashed at every start"),
        writable);
    findings.push_back(self_test());
    std::int64_t ill = 0;
    for (const auto& finding : findings) ill += !finding.well;
    if (json_) {
      Json out{{"ok", ill == 0}, {"checks", Json::array()}};
      for (const auto& finding : findings)
        out["checks"].push_back(
            {{"name", finding.what}, {"ok", finding.well}, {"found", finding.found}});
      print_json(out);
    } else {
      for (const auto& finding : findings)
        say("{} {:<14} {}\n", finding.well ? "ok  " : bold("BAD "), finding.what,
            one_line(finding.found));
    }
    if (ill > 0)
      throw Error(Errc::unsupported,
                  fmt::format("{} not well", counted(ill, "thing is", "things are")));
  }

 private:
  bool json_ = false;
};

}  // namespace

std::unique_ptr<Verb> doctor_verb() { return std::make_unique<Doctor>(); }

}  // namespace mneme::cli
