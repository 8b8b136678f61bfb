#include "mneme/train/trainer.h"

#include "mneme/core/progress.h"
#include "mneme/core/registry.h"
#include "mneme/models/adapter_file.h"
#include "mneme/weights/safetensors.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "training_fixture.h"
#include <nlohmann/json.hpp>
#include <sstream>
#include <unistd.h>

namespace mneme {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

struct Killed : std::exception {};

/// Lines of a log without what depends on the clock.
std::vector<Json> lines_of(const fs::path& log) {
  std::vector<Json> out;
  std::istringstream in(check::content_of(log));
  for (std::string line; std::getline(in, line);) {
    out.push_back(Json::parse(line));
    out.back().erase("tokens_per_s");
    out.back().erase("seconds");
  }
  return out;
}

/// A task's examples under the digest of others.
class OtherData final : public Task {
 public:
  explicit OtherData(const Task& task) : task_(task) {}
  [[nodiscard]] std::int64_t size() const override { return task_.size(); }
  [[nodiscard]] Example example(std::int64_t index, std::int64_t pass,
                                Generator& generator) const override {
    return task_.example(index, pass, generator);
  }
  [[nodiscard]] std::string digest() const override { return "0123456789abcdef0123456789abcdef"; }

 private:
  const Task& task_;
};

class TrainerTest : public check::FolderTest {
 protected:
  void SetUp() override {
    FolderTest::SetUp();
    Progress::set_quiet(true);
  }
  void TearDown() override {
    Progress::set_quiet(false);
    FolderTest::TearDown();
  }

  TrainConfig config(const std::string& output = "out.safetensors") const {
    TrainConfig out;
    out.output = folder_ / output;
    out.task.spec = parse_stage("repeat");
    out.adapter.rank = 4;
    out.adapter.alpha = 8;
    out.adapter.type = "f32";
    out.optimizer.spec = parse_stage("adamw(lr=0.01, weight_decay=0.01)");
    out.optimizer.schedule = parse_stage("cosine(warmup=2)");
    out.train.steps = 7;
    out.train.batch = 5;
    out.train.accumulate = 2;
    out.train.validate_every = 3;
    out.train.validate_limit = 6;
    out.train.checkpoint_every = 2;
    return out;
  }

  /// A model, its adapters, a task and their trainer, made anew: what a process starts with.
  struct Session {
    std::unique_ptr<LanguageModel> model = check::tiny_language_model();
    Params adapters;
    std::unique_ptr<Task> task;
    std::unique_ptr<Trainer> trainer;
    explicit Session(const TrainConfig& config) {
      adapters = attach_adapters(*model, config);
      task = registry().make<Task>(config.task.spec, Task::Setup{});
      trainer = std::make_unique<Trainer>(*model, adapters, *task, config);
    }
  };
};

TEST_F(TrainerTest, LearnsAndLeavesItsFiles) {
  auto setting = config();
  setting.train.steps = 60;
  setting.train.validate_every = 20;
  setting.task.spec = parse_stage("repeat(examples=8, words=2, longest=3)");
  Session session(setting);
  const auto before = session.trainer->validate();
  const auto report = session.trainer->run();
  const TrainingFiles files(setting.output);
  EXPECT_EQ(report.steps, 60);
  EXPECT_EQ(session.trainer->steps(), 60);
  const auto lines = lines_of(files.log);
  ASSERT_EQ(lines.size(), 64u);
  EXPECT_EQ(lines.front(), (Json{{"step", 0}, {"validation", before.figures}}));
  ASSERT_TRUE(report.before.has_value());
  EXPECT_EQ(report.before->figures, before.figures);
  const auto first = lines[1]["loss"].get<double>(),
             last = lines[lines.size() - 2]["loss"].get<double>();
  EXPECT_LT(last, 0.3 * first);
  EXPECT_LT(report.loss.value(), first);
  EXPECT_GT(report.validation.figures.at("accuracy"), before.figures.at("accuracy") + 0.2);
  EXPECT_EQ(lines.back(), (Json{{"step", 60}, {"validation", report.validation.figures}}));
  EXPECT_EQ(lines[1]["terms"]["cross_entropy"], lines[1]["loss"]);
  EXPECT_DOUBLE_EQ(lines[1]["lr"].get<double>(), 0.005) << "the first of two steps of warm-up";
  EXPECT_FALSE(fs::exists(files.checkpoint));
  EXPECT_NE(check::content_of(files.plot).find(">accuracy<"), std::string::npos);
  EXPECT_EQ(read_adapter_info(files.output).notes.at("prompt"), "{\"mark\": 2}");

  // The file gives what was trained.
  auto fresh = check::tiny_language_model();
  const auto digest = fresh->digest;
  (void)load_adapter(files.output, *fresh);
  EXPECT_NE(fresh->digest, digest);
  const c10::NoGradGuard no_gradient;
  EXPECT_EQ(session.task->validate(*fresh, 6), report.validation.figures);
}

/// Ended at every step by an exception or, as a kill would, without a word; resumed each time from
/// what lies on the disk: the same steps and the same adapter, bit for bit.
TEST_F(TrainerTest, AResumedTrainingIsTheUnbrokenOne) {
  for (const bool by_steps : {true, false}) {
    auto unbroken = config(by_steps ? "unbroken.safetensors" : "by-passes.safetensors");
    if (!by_steps) {
      unbroken.train.steps = 0;
      unbroken.train.passes = 3;  // 24 examples in batches of 5: steps cross the ends of passes
    }
    (void)Session(unbroken).trainer->run();
    const auto want = lines_of(TrainingFiles(unbroken.output).log);
    const auto weights = read_safetensors(unbroken.output);
    std::int64_t steps = 0;
    for (const auto& line : want) steps = std::max(steps, line["step"].get<std::int64_t>());
    EXPECT_EQ(steps, by_steps ? 7 : 8);
    for (std::int64_t at = 0; at < steps; at += by_steps ? 1 : 3) {
      for (const bool kill : {false, true}) {
        auto broken = unbroken;
        broken.output = folder_ / fmt::format("broken-{}-{}-{}.safetensors", by_steps, at, kill);
        const TrainingFiles files(broken.output);
        fs::path snapshot = folder_ / "snapshot";
        {
          Session session(broken);
          int calls = 0;
          EXPECT_THROW(
              (void)session.trainer->run(Begin::fresh,
                                         [&] {
                                           if (session.trainer->steps() < at || ++calls < 4)
                                             return;  // inside of the step
                                           if (kill)
                                             fs::copy_file(files.checkpoint, snapshot,
                                                           fs::copy_options::overwrite_existing);
                                           throw Killed();
                                         }),
              Killed);
        }
        EXPECT_FALSE(fs::exists(broken.output));
        if (kill) {  // what the disk held before anything could be written, and half a line of the log
          fs::rename(snapshot, files.checkpoint);
          std::ofstream(files.log, std::ios::app) << "{\"step\": 3, \"lo";
        }
        const auto report = Session(broken).trainer->run(Begin::resume);
        EXPECT_EQ(report.steps, steps);
        EXPECT_EQ(lines_of(files.log), want) << "stopped at " << at << (kill ? " by a kill" : "");
        const auto got = read_safetensors(broken.output);
        ASSERT_EQ(got.size(), weights.size());
        for (const auto& [name, tensor] : weights)
          EXPECT_TRUE(check::identical(got.at(name), tensor)) << name;
        EXPECT_FALSE(fs::exists(files.checkpoint));
      }
    }
  }
}

TEST_F(TrainerTest, ACheckpointIsNeitherOverwrittenNorMistaken) {
  auto setting = config();
  const TrainingFiles files(setting.output);
  check::expect_error(Errc::not_found, "start without --resume",
                      [&] { (void)Session(setting).trainer->run(Begin::resume); });
  {
    Session session(setting);
    EXPECT_THROW((void)session.trainer->run(Begin::fresh,
                                            [&] {
                                              if (session.trainer->steps() == 3) throw Killed();
                                            }),
                 Killed);
  }
  const auto kept = check::content_of(files.checkpoint);
  check::expect_error(Errc::invalid, "--resume", [&] { (void)Session(setting).trainer->run(); });
  const auto refuses = [&](const std::string& why, auto change) {
    auto changed = setting;
    change(changed);
    check::expect_error(Errc::mismatch, why,
                        [&] { (void)Session(changed).trainer->run(Begin::resume); });
  };
  refuses("seed was 1, now it is 2", [](auto& c) { c.seed = 2; });
  refuses("adamw", [](auto& c) { c.optimizer.spec = parse_stage("adamw(lr=0.02)"); });
  refuses("train.steps was 7, now it is 8", [](auto& c) { c.train.steps = 8; });
  refuses("train.accumulate", [](auto& c) { c.train.accumulate = 1; });
  refuses("adapter.rank", [](auto& c) { c.adapter.rank = 2; });
  refuses("repeat", [](auto& c) { c.task.spec = parse_stage("repeat(words=9)"); });
  refuses("loss", [](auto& c) { c.loss.push_back({parse_stage("aux(name=x)"), 1}); });
  {
    Session session(setting);
    session.model->digest = "another";
    Trainer other(*session.model, session.adapters, *session.task, setting);
    check::expect_error(Errc::mismatch, "model was digest-of-tiny-1, now it is another",
                        [&] { other.load_checkpoint(files.checkpoint); });
  }
  {  // the same spec and as many examples, but others
    Session session(setting);
    const OtherData other(*session.task);
    Trainer trainer(*session.model, session.adapters, other, setting);
    check::expect_error(
        Errc::mismatch,
        "the task's data (examples, digest) was 24 , now it is 24 0123456789abcdef;",
        [&] { trainer.load_checkpoint(files.checkpoint); });
  }
  EXPECT_EQ(check::content_of(files.checkpoint), kept);
  write_safetensors(files.checkpoint, {{"x", at::ones({1})}});
  check::expect_error(Errc::mismatch, "no checkpoint",
                      [&] { (void)Session(setting).trainer->run(Begin::resume); });
  write("out.safetensors.checkpoint", kept.substr(0, kept.size() / 2));
  check::expect_error(Errc::corrupt, "out.safetensors.checkpoint",
                      [&] { (void)Session(setting).trainer->run(Begin::resume); });
}

TEST_F(TrainerTest, NothingIsOverwrittenUnlessAsked) {
  auto setting = config();
  setting.train.steps = 2;
  const TrainingFiles files(setting.output);
  (void)Session(setting).trainer->run();
  const auto adapter = check::content_of(files.output), log = check::content_of(files.log);
  const auto in_the_way = [&](const std::string& what) {
    check::expect_error(Errc::invalid,
                        what + " there already: ", [&] { files.check(Begin::fresh); });
    check::expect_error(Errc::invalid, "--force", [&] { (void)Session(setting).trainer->run(); });
  };
  in_the_way(fmt::format("{}, {}, {} are", files.output.string(), files.log.string(),
                         files.plot.string()));
  fs::remove(files.output);
  fs::remove(files.plot);
  in_the_way(files.log.string() + " is");
  EXPECT_EQ(check::content_of(files.log), log);
  check::expect_error(Errc::not_found, "start without --resume",
                      [&] { files.check(Begin::resume); });

  setting.seed = 2;
  (void)Session(setting).trainer->run(Begin::overwrite);
  EXPECT_EQ(check::content_of(files.output).size(), adapter.size());
  EXPECT_NE(check::content_of(files.output), adapter);
  EXPECT_EQ(lines_of(files.log).size(), 4u) << "two steps, and validations around them";

  // A checkpoint gives way too, and the old adapter stays until there is a new one.
  write("out.safetensors.checkpoint", "of a training that nobody wants any more");
  check::expect_error(Errc::invalid, "--resume, or start anew with --force",
                      [&] { files.check(Begin::fresh); });
  const auto before = check::content_of(files.output);
  {
    Session session(setting);
    EXPECT_THROW((void)session.trainer->run(Begin::overwrite,
                                            [&] {
                                              if (session.trainer->steps() == 1) throw Killed();
                                            }),
                 Killed);
  }
  EXPECT_EQ(check::content_of(files.output), before);
  EXPECT_EQ(Session(setting).trainer->run(Begin::resume).steps, 2);
  EXPECT_EQ(check::content_of(files.output), before) << "the same training once more";
}

/// A user's questions may lie where the log would go.
TEST_F(TrainerTest, AFileThatIsNoLogIsNeverOverwritten) {
  const TrainingFiles files(folder_ / "questions.safetensors");
  for (const auto* content : {"{\"passage\": \"a\"}\n", "text", "{\"steps\": 1}", "\n"}) {
    write("questions.jsonl", content);
    check::expect_error(Errc::invalid, "questions.jsonl: the log would go there",
                        [&] { files.check(Begin::overwrite); });
    write("questions.safetensors.checkpoint", "");
    check::expect_error(Errc::invalid, "questions.jsonl: the log would go there",
                        [&] { files.check(Begin::resume); });
    fs::remove(files.checkpoint);
    EXPECT_EQ(check::content_of(files.log), content);
  }
  for (const auto* content : {"", "{\"st", "{\"step\":1,\"loss\":2}\n"}) {
    write("questions.jsonl", content);
    EXPECT_NO_THROW(files.check(Begin::overwrite)) << content;
  }
}

/// Nor is what an adapter would take the place of, unless it is one.
TEST_F(TrainerTest, AFileThatIsNoAdapterIsNeverOverwritten) {
  const TrainingFiles files(folder_ / "model.safetensors");
  const auto refuses = [&](Begin begin, const std::string& why, const fs::path& model = {}) {
    check::expect_error(Errc::invalid, why, [&] { files.check(begin, model); });
  };
  const std::string other =
      "model.safetensors: the adapter would go there, but the file is something";
  const auto kept = [&](auto make) {
    make();
    const auto content = check::content_of(files.output);
    refuses(Begin::overwrite, other);
    refuses(Begin::fresh, "overwrite with --force");
    write("model.safetensors.checkpoint", "");
    refuses(Begin::resume, other);
    fs::remove(files.checkpoint);
    EXPECT_EQ(check::content_of(files.output), content);
  };
  kept([&] { write("model.safetensors", "text"); });
  kept([&] { write("model.safetensors", ""); });
  kept([&] { write_safetensors(files.output, {{"x", at::ones({1})}}); });
  // The model's own file, by whatever name, and one in its folder.
  fs::create_symlink(files.output, folder_ / "link");
  for (const auto begin : {Begin::fresh, Begin::overwrite}) {
    for (const auto& model : {files.output, folder_ / "link", folder_}) {
      refuses(begin, "model.safetensors: is the model that the adapter is for", model);
    }
  }
  write_safetensors(files.output, {{"x", at::ones({1})}},
                    {{"format", "mneme-adapter"}, {"version", "9"}});
  EXPECT_NO_THROW(files.check(Begin::overwrite, folder_)) << "an adapter of another version";
}

/// Before a model is loaded, where there is need of none.
TEST_F(TrainerTest, WhatTheConfigAloneTellsIsLookedAtFirst) {
  auto setting = config();
  write("model.gguf", "not read");
  setting.model = (folder_ / "model.gguf").string();
  EXPECT_NO_THROW(check_training(setting, Begin::fresh));
  const auto refuses = [&](Errc code, const std::string& why, Begin begin, auto change) {
    auto changed = setting;
    change(changed);
    check::expect_error(code, why, [&] { check_training(changed, begin); });
  };
  refuses(Errc::unsupported, "'cuda'", Begin::fresh, [](auto& c) { c.device = "cuda"; });
  refuses(Errc::usage, "twice", Begin::fresh, [](auto& c) { c.loss.push_back(c.loss.front()); });
  refuses(Errc::not_found, "nowhere", Begin::fresh, [](auto& c) { c.model = "nowhere.gguf"; });
  refuses(Errc::not_found, "start without --resume", Begin::resume, [](auto&) {});
  Session(setting).trainer->save_checkpoint(TrainingFiles(setting.output).checkpoint);
  EXPECT_NO_THROW(check_training(setting, Begin::resume));
  refuses(Errc::mismatch, "train.steps was 7, now it is 8", Begin::resume,
          [](auto& c) { c.train.steps = 8; });
  refuses(Errc::mismatch, "loss", Begin::resume,
          [](auto& c) { c.loss.push_back({parse_stage("aux(name=x)"), 1}); });
}

/// Stopped in the last validation: nothing is left to do but that.
TEST_F(TrainerTest, ARunWithoutAStepHasNoLossAndAHoleInTheLogIsNamed) {
  const auto setting = config();
  const TrainingFiles files(setting.output);
  const auto line = [](int step) {
    return fmt::format("{{\"step\":{},\"loss\":1,\"terms\":{{\"cross_entropy\":1}}}}\n", step);
  };
  const auto resumed = [&](const std::string& log) {
    write("out.jsonl", log);
    Session session(setting);
    while (!session.trainer->done()) (void)session.trainer->step();
    session.trainer->save_checkpoint(files.checkpoint);
    testing::internal::CaptureStderr();
    const auto report = Session(setting).trainer->run(Begin::resume);
    EXPECT_EQ(report.steps, 7);
    EXPECT_FALSE(report.loss.has_value());
    return testing::internal::GetCapturedStderr();
  };
  std::string all;
  for (int step = 1; step <= 7; ++step) all += line(step);
  EXPECT_EQ(resumed(all), "");
  for (const auto& [log, missing] : std::vector<std::pair<std::string, std::string>>{
           {"", "1-7"},
           {line(1) + line(2) + line(5) + std::string(9, '\0') + "\n", "3-4, 6-7"},
           {line(1) + line(2) + line(3) + line(4) + line(5) + line(6) + "{\"step\":7,\"lo", "7"}}) {
    const auto said = resumed(log);
    EXPECT_NE(
        said.find("out.jsonl: the checkpoint is of step 7, but the log lacks of the steps before "
                  "it: " +
                  missing + "\n"),
        std::string::npos)
        << said;
    EXPECT_EQ(std::count(said.begin(), said.end(), '\n'), 1) << said;
  }
}

TEST_F(TrainerTest, AnOutputThatCannotBeIsRefusedBeforeAnythingIsDone) {
  const auto refuses = [&](Errc code, const fs::path& output, const std::string& why) {
    for (const auto begin : {Begin::fresh, Begin::overwrite}) {
      check::expect_error(code, why, [&] { TrainingFiles(output).check(begin); });
    }
  };
  refuses(Errc::usage, "", "'output'");
  refuses(Errc::usage, folder_, "is a folder");
  refuses(Errc::usage, folder_ / "", "is a folder");
  refuses(Errc::usage, folder_ / "a.jsonl", "end the adapter's name in .safetensors");
  refuses(Errc::usage, folder_ / "a.svg", "end the adapter's name in .safetensors");
  refuses(Errc::io, folder_ / "none/a.safetensors", "there is no folder");
  EXPECT_NO_THROW(TrainingFiles(folder_ / "a.safetensors").check(Begin::fresh));
  EXPECT_NO_THROW(TrainingFiles("a.safetensors").check(Begin::fresh)) << "where the user stands";
  EXPECT_TRUE(fs::is_empty(folder_));
  if (::geteuid() == 0) return;  // who may write anywhere
  fs::permissions(folder_, fs::perms::owner_read | fs::perms::owner_exec);
  refuses(Errc::io, folder_ / "a.safetensors", "cannot be written");
  fs::permissions(folder_, fs::perms::owner_all);
}

TEST_F(TrainerTest, AccumulatedBatchesAreOneLargeBatch) {
  auto many = config(), one = config();
  many.task.spec = one.task.spec = parse_stage("repeat(examples=6)");
  many.train.batch = 2;
  many.train.accumulate = 3;
  one.train.batch = 6;
  one.train.accumulate = 1;
  Session a(many), b(one);
  for (int step = 0; step < 3; ++step) {
    const auto of_many = a.trainer->step(), of_one = b.trainer->step();
    EXPECT_NEAR(of_many.loss.total, of_one.loss.total, 1e-5);
    EXPECT_NEAR(of_many.norm, of_one.norm, 1e-4 * of_one.norm);
    EXPECT_EQ(of_many.tokens, of_one.tokens);
    EXPECT_EQ(of_many.examples, 6);
  }
}

TEST_F(TrainerTest, GradientsAreClippedByTheirCommonNorm) {
  auto setting = config();
  setting.optimizer.clip = 0.01;
  Session session(setting);
  const auto report = session.trainer->step();
  EXPECT_GT(report.norm, 0.1);
  double squares = 0;
  for (const auto& name : session.adapters.names()) {
    squares += session.adapters.find(name)->tensor.grad().square().sum().item<double>();
  }
  EXPECT_NEAR(std::sqrt(squares), 0.01, 1e-5);

  setting.optimizer.clip = 0;
  Session free(setting);
  EXPECT_NEAR(free.trainer->step().norm, report.norm, 1e-6);
  squares = 0;
  for (const auto& name : free.adapters.names()) {
    squares += free.adapters.find(name)->tensor.grad().square().sum().item<double>();
  }
  EXPECT_NEAR(std::sqrt(squares), report.norm, 1e-5);
}

TEST_F(TrainerTest, AStepThatIsStoppedIsNotTaken) {
  const auto setting = config();
  Session session(setting), other(setting);
  int calls = 0;
  EXPECT_THROW((void)session.trainer->step([&] {
    if (++calls == 5) throw Killed();
  }),
               Killed);
  EXPECT_EQ(session.trainer->steps(), 0);
  EXPECT_EQ(session.trainer->step().loss.total, other.trainer->step().loss.total);
}

TEST_F(TrainerTest, SaysWhatItCannotDo) {
  auto setting = config();
  setting.output.clear();
  check::expect_error(Errc::usage, "'output'", [&] { (void)Session(setting).trainer->run(); });
  setting = config("no folder/out.safetensors");
  check::expect_error(Errc::io, "no folder", [&] { (void)Session(setting).trainer->run(); });
  setting = config();
  setting.device = "cuda";
  check::expect_error(Errc::unsupported, "'cuda'", [&] { Session session(setting); });
  setting = config();
  setting.adapter.parameters = "layer.*";
  check::expect_error(Errc::not_found, "layer.*", [&] { Session session(setting); });
  setting = config();
  setting.loss.push_back({parse_stage("cross_entropy"), 2});
  check::expect_error(Errc::usage, "twice", [&] { Session session(setting); });

  auto silent = check::random_example(6, 1);
  silent.weights.assign(6, 0);
  const check::FixedTask nothing({silent});
  auto model = check::tiny_language_model();
  const auto adapters = attach_adapters(*model, config());
  Trainer trainer(*model, adapters, nothing, config());
  check::expect_error(Errc::invalid, "token to learn", [&] { (void)trainer.step(); });
}

}  // namespace
}  // namespace mneme
