#include "mneme/train/config.h"

#include "training_fixture.h"

namespace mneme {
namespace {

class Config : public check::FolderTest {
 protected:
  TrainConfig read(const std::string& text) const {
    return read_train_config(write("train.toml", text));
  }
  void refuses(const std::string& text, const std::string& why) const {
    check::expect_error(Errc::usage, why, [&] { (void)read(text); });
  }
};

TEST_F(Config, HoldsWhatTheFileSays) {
  const auto config = read(R"toml(
model = "other.gguf"
seed = 7
output = "out/reader.safetensors"
device = "cpu"
[task]
spec = "repeat(examples=5)"
[adapter]
parameters = ["layers.*.attn.*", "layers.*.mlp.*"]
rank = 4
alpha = 8
type = "bf16"
[optimizer]
spec = "adamw(lr=0.01)"
schedule = "linear(warmup=3)"
clip = 0.5
[[loss]]
spec = "cross_entropy(label_smoothing=0.1)"
weight = 0.75
[[loss]]
spec = "aux(name=balance)"
[train]
steps = 12
batch_tokens = 512
accumulate = 2
checkpoint_layers = 0
compute = "bf16"
validate_every = 4
validate_limit = 5
checkpoint_every = 6
)toml");
  EXPECT_EQ(config.model, "other.gguf");
  EXPECT_EQ(config.seed, 7u);
  EXPECT_EQ(config.output, "out/reader.safetensors");
  EXPECT_EQ(print(config.task.spec), "repeat(examples=5)");
  EXPECT_EQ(config.adapter.parameters, "layers.*.attn.*|layers.*.mlp.*");
  EXPECT_EQ(config.adapter.rank, 4);
  EXPECT_EQ(config.adapter.alpha, 8);
  EXPECT_EQ(config.adapter.type, "bf16");
  EXPECT_EQ(print(config.optimizer.spec), "adamw(lr=0.01)");
  EXPECT_EQ(print(config.optimizer.schedule), "linear(warmup=3)");
  EXPECT_EQ(config.optimizer.clip, 0.5);
  ASSERT_EQ(config.loss.size(), 2u);
  EXPECT_EQ(config.loss[0].weight, 0.75);
  EXPECT_EQ(print(config.loss[1].spec), "aux(name=balance)");
  EXPECT_EQ(config.train.steps, 12);
  EXPECT_EQ(config.train.batch_tokens, 512);
  EXPECT_EQ(config.train.accumulate, 2);
  EXPECT_EQ(config.train.checkpoint_layers, 0);
  EXPECT_EQ(config.train.compute, Compute::bf16);
  EXPECT_EQ(config.train.validate_every, 4);
  EXPECT_EQ(config.train.validate_limit, 5);
  EXPECT_EQ(config.train.checkpoint_every, 6);
}

TEST_F(Config, HasDefaultsForAllButTheTask) {
  const auto config = read("[task]\nspec = \"repeat\"\n");
  EXPECT_EQ(config.model, "smollm2");
  EXPECT_EQ(config.loss.size(), 1u);
  EXPECT_EQ(print(config.loss[0].spec), "cross_entropy");
  EXPECT_EQ(print(config.optimizer.spec), "adamw");
  EXPECT_EQ(config.train.passes, 1);
}

TEST_F(Config, SaysWhatIsWrongAndWhere) {
  const std::string task = "[task]\nspec = \"repeat\"\n";
  refuses("", "[task]");
  refuses("seed = 3\n", "tasks: ");
  refuses("sed = 3\n" + task, "train.toml:1: unknown key 'sed', did you mean 'seed'?");
  refuses(task + "[optimiser]\n", "unknown table 'optimiser', did you mean 'optimizer'?");
  refuses(task + "[train]\nstep = 3\n",
          "train.toml:4: unknown key 'step' in [train], did you mean 'steps'?");
  refuses(task + "[train]\nsteps = 0\n", "'steps' must be a whole number from 1");
  refuses(task + "[train]\nsteps = 1.5\n", "whole number");
  refuses(task + "[train]\nsteps = 3\npasses = 2\n", "give one");
  refuses(task + "[train]\nbatch = 3\nbatch_tokens = 2\n", "give one");
  refuses(task + "[train]\ncompute = \"f23\"\n", "did you mean 'f32'?");
  refuses(task + "[adapter]\nkind = \"lara\"\n", "did you mean 'lora'?");
  refuses(task + "[adapter]\nalpha = -1\n", "'alpha' must be a number, above 0");
  refuses(task + "[adapter]\nalpha = \"1\"\n", "'alpha' must be a number");
  refuses(task + "[adapter]\nparameters = 3\n", "quotation marks");
  refuses(task + "[optimizer]\nspec = \"adamv\"\n", "did you mean 'adamw'?");
  refuses(task + "[optimizer]\nspec = \"adamw(lr=-1)\"\n", "train.toml:4: ");
  refuses(task + "[optimizer]\nschedule = \"cosine(warmpu=1)\"\n", "did you mean 'warmup'?");
  refuses("[task]\nspec = \"repeet\"\n", "did you mean 'repeat'?");
  refuses("task = \"repeat\"\n", "must be a table");
  refuses(task + "[loss]\nspec = \"cross_entropy\"\n", "[[loss]]");
  refuses(task + "[[loss]]\nspek = \"cross_entropy\"\n", "did you mean 'spec'?");
  refuses(task + "device = \"gpu\"\n", "unknown key 'device' in [task]");
  refuses("device = \"gpu\"\n" + task, "'device' is 'gpu', it can be auto, cpu, cuda");
  refuses("= 3\n", "train.toml:1: ");
  check::expect_error(Errc::not_found, "nowhere.toml",
                      [&] { (void)read_train_config(folder_ / "nowhere.toml"); });
  check::expect_error(Errc::io, "cannot be read", [&] { (void)read_train_config(folder_); });
}

TEST_F(Config, IsFoundByPathOrByTheNameOfOneThatComesAlong) {
  const auto cwd = std::filesystem::current_path();
  std::filesystem::current_path(folder_);
  std::filesystem::create_directory("reader");  // a folder is no config
  const auto found = locate_train_config("reader");
  EXPECT_EQ(found.filename(), "reader.toml");
  EXPECT_EQ(found.parent_path().filename(), "adapters");
  EXPECT_TRUE(std::filesystem::is_regular_file(found));
  check::expect_error(Errc::not_found, "'readr', did you mean 'reader'?: it is neither a file",
                      [&] { (void)locate_train_config("readr"); });
  for (const auto* path : {"reader.toml", "none/reader", "./reader"})
    EXPECT_EQ(locate_train_config(path), path) << "as it is, there or not";
  std::filesystem::remove("reader");
  write("reader", "[task]\n");
  EXPECT_EQ(locate_train_config("reader"), "reader") << "the user's own file goes first";
  std::filesystem::current_path(cwd);
}

TEST_F(Config, TheRecipeIsWhatDecidesWhatIsLearned) {
  const std::string text = "[task]\nspec = \"repeat\"\n[train]\n";
  const auto base = recipe(read(text));
  EXPECT_EQ(recipe(read("output = \"x\"\n" + text + "validate_every = 3\ncheckpoint_every = 3\n")),
            base);
  EXPECT_EQ(recipe(read(text + "[optimizer]\nspec = \"adamw(lr=1e-3)\"\n")), base)
      << "specs are canonical";
  for (const auto* change :
       {"accumulate = 2\n", "batch = 3\n", "batch_tokens = 3\n", "steps = 3\n",
        "compute = \"f32\"\n", "[optimizer]\nclip = 2\n",
        "[[loss]]\nspec = \"cross_entropy\"\nweight = 2\n", "[adapter]\nrank = 3\n"}) {
    EXPECT_NE(recipe(read(text + change)), base) << change;
  }
  EXPECT_NE(recipe(read("seed = 2\n" + text)), base);
}

}  // namespace
}  // namespace mneme
