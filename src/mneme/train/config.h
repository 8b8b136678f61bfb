// TrainConfig: everything that decides how a model is trained, as a TOML file says it.
#pragma once

#include "mneme/core/call.h"
#include "mneme/core/spec.h"

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace mneme {

/// One training, settings in the order of the file's tables. A TOML key is a field's name; a table
/// is a member.
struct TrainConfig {
  std::string model = "smollm2";
  std::uint64_t seed = 1;
  std::filesystem::path output;  ///< the adapter file; logs and checkpoints stand beside it
  std::string device = "auto";   ///< "auto", "cpu" or "cuda"

  struct TaskTable {
    Stage spec;
  } task;
  struct AdapterTable {
    std::string kind = "lora";
    std::string parameters = "layers.*.weight";  ///< glob; in the file also a list of globs
    std::int64_t rank = 16;
    double alpha = 32;
    std::string type = "f16";  ///< in which numbers the file keeps it: "f32", "f16" or "bf16"
  } adapter;
  struct OptimizerTable {
    Stage spec{"adamw", {}};
    Stage schedule{"cosine", {}};
    double clip = 1;  ///< most that the norm of all gradients may be; 0: any
  } optimizer;
  struct LossTable {
    Stage spec{"cross_entropy", {}};
    double weight = 1;
  };
  std::vector<LossTable> loss{{}};  ///< [[loss]], one table a term
  struct TrainTable {
    std::int64_t steps = 0;              ///< 0: as many as `passes` take
    std::int64_t passes = 1;             ///< over the task's examples
    std::int64_t batch = 8;              ///< examples that run together
    std::int64_t batch_tokens = 0;       ///< instead: tokens, with padding, that run together
    std::int64_t accumulate = 1;         ///< batches in a step
    std::int64_t checkpoint_layers = 1;  ///< layers run again together in backward; 0: none
    /// Numbers of the products: "bf16" is about twice as fast as "f32" on a CPU that has bf16
    /// products, and the same as "f32" on any other; "automatic" keeps gradients in f32.
    Compute compute = Compute::automatic;
    std::int64_t validate_every = 50;  ///< steps, the first time before all; 0: at the end only
    std::int64_t validate_limit = 100;
    std::int64_t checkpoint_every = 25;  ///< steps; 0: only where training is stopped
  } train;
};

/// Finds a config by its path or, where no file is there, by the known name of one that the program
/// brings along ("reader": adapters/reader.toml in its checkout). Throws Error(not_found) with the
/// known names.
std::filesystem::path locate_train_config(const std::string& name_or_path);

/// Reads and checks a config file. Components are looked up and their options checked. Throws
/// Error(not_found), Error(io), and Error(usage) with file and line for what is no TOML, for an
/// unknown key (naming the nearest known one) and for a value that a key cannot have.
TrainConfig read_train_config(const std::filesystem::path& path);

/// The settings that decide what is learned, as key and value: where two trainings agree in these
/// (and in the model's weights), they take the same steps. Where things are written, and how often,
/// is not among them.
std::vector<std::pair<std::string, std::string>> recipe(const TrainConfig& config);

}  // namespace mneme
