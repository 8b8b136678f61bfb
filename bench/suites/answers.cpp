// answers: how well questions are answered from memory, on SQuAD v1.1 dev.
//
//   recall of the gold paragraph; exact match and word F1 of answers read from it alone, from the best spans apart
//   (`--place each`), placed one after another (`--place together`) and read jointly, at several codecs; whether
//   citations point at where answers come from; whether questions on other topics are refused
//
// spec      answers(split=final, questions=500)
// needs     squad/dev-v1.1.json.gz in the data folder; v2.0 and the pairs of the training set are used where they are
// source    Rajpurkar et al. 2016, arXiv:1606.05250 (the data and the metrics)
// departs   documents are whole articles, so that the paragraph has to be found first
#include "mneme/core/progress.h"
#include "mneme/core/registry.h"
#include "mneme/kernels/level.h"

#include "bench/answers/answer_rows.h"
#include "bench/answers/article_memory.h"
#include "bench/answers/question_set.h"
#include "bench/answers/summary.h"
#include "bench/list.h"
#include "bench/scratch_folder.h"
#include "bench/suite.h"
#include "bench/writable.h"
#include <algorithm>
#include <filesystem>
#include <fmt/format.h>
#include <fstream>
#include <memory>
#include <span>

namespace mneme::suites::answers {

using namespace mneme::bench;

class Answers final : public Suite {
 public:
  struct Options {
    std::string split = "final";
    std::int64_t questions = 500;
    std::string variants = "all", compute = "automatic", kv;
    std::string resume, peer;
  };
  static void describe(Describe& d, Options& o) {
    d("split", o.split, one_of({"tuning", "held-back", "final"}),
      "articles that are asked: set defaults on tuning, a reader's on held-back, report final");
    d("questions", o.questions, at_least(2), "how many of the split's fixed list of questions");
    d("variants", o.variants,
      "ways to answer, separated by commas; all: every one; none: recall and refusal only");
    d("kv", o.kv,
      "what is kept of spans (`mneme read --kv`), specs separated by ';': each from the best spans "
      "apart");
    d("compute", o.compute, one_of({"automatic", "f32", "bf16"}),
      "number type of products; automatic: what mneme uses on this CPU");
    d("resume", o.resume,
      "file that keeps a row a question and way: an interrupted run goes on from it");
    d("peer", o.peer,
      "file with another engine's answers to the gold paragraphs, a line {\"id\", \"answer\"} "
      "each");
  }
  explicit Answers(const Options& o) : o_(o) {}

  [[nodiscard]] std::vector<std::string> examples() const override {
    return {"mneme bench answers --split tuning --questions 100",
            "mneme bench answers --variants each --kv 'quantize(bits=8); quantize(bits=4)' "
            "--report answers.md"};
  }

  SuiteReport run(const SuiteSetup& setup) override {
    check_writable(o_.resume);
    auto wanted = wanted_variants();
    const auto kept = kept_variants();
    const auto set = choose_questions(setup.data, o_.split, o_.questions);
    const auto models =
        std::make_shared<MemoryModels>(setup.language_model, setup.embedder, setup.adapter,
                                       o_.compute == "f32"    ? Compute::f32
                                       : o_.compute == "bf16" ? Compute::bf16
                                                              : Compute::automatic);
    const auto model = models->language_model("");
    const auto encoder = models->embedder("");
    const ScratchFolder scratch;
    ArticleMemory small(scratch.path() / "small.mneme", set, set.small, models);

    const auto prompt = small.memory().prompt();
    const Reader reader(model, prompt, Chain{});
    AnswerRows rows(o_.resume, {{"split", o_.split},
                                {"model", model->digest},
                                {"embedder", encoder->digest()},
                                {"prompt", nlohmann::json::parse(prompt.to_json())},
                                {"level", std::string(kernels::name(kernels::level()))},
                                {"compute", o_.compute}});
    const bool reads = !prompt.refusal.empty() && !wanted.empty();
    // Before anything is measured: a spec may need numbers of the model that are not there.
    std::vector<Reader> keeping;
    for (const auto& variant : kept) keeping.emplace_back(model, prompt, parse_chain(variant.kv));
    Findings findings{set, rows, wanted, {}, {}, {}, {}, {}, prompt, {}};
    if (!o_.peer.empty()) findings.peer = read_peer();

    findings.small =
        recall(small, set, set.others, setup, fmt::format("{} whole articles", set.small.size()));
    findings.small_refusal =
        refusal(small, set, findings.small, set.strangers, "articles that are not in it");
    findings.small_refusal.unanswerable = evidence_on(set.unanswerable, small);
    {
      ArticleMemory large(scratch.path() / "large.mneme", set, set.all, models);
      findings.large =
          recall(large, set, {}, setup, fmt::format("all {} articles", set.all.size()));
      if (set.split != "final") {
        findings.large_refusal =
            refusal(large, set, findings.large, set.more_strangers, "articles of the training set");
      }
    }
    if (set.split == "final") {
      ArticleMemory others(scratch.path() / "without_strangers.mneme", set, set.without_strangers,
                           models);
      const auto found =
          recall(others, set, {}, setup,
                 fmt::format("all {} articles but the strangers' {}", set.without_strangers.size(),
                             set.all.size() - set.without_strangers.size()));
      findings.large_refusal =
          refusal(others, set, found, set.strangers, "articles that are not in it");
      if (reads) weigh_answers(others, set, setup, {}, findings.large_refusal, rows);
    }
    answer_questions(set, small, reader, findings.small.questions, wanted, rows, setup.between);
    for (std::size_t i = 0; i < kept.size(); ++i) {
      const Variant way{kept[i].kv, kept[i].help, Variant::How::apart, 0, keeping[i].codec()};
      answer_questions(set, small, keeping[i], findings.small.questions, {&way, 1}, rows,
                       setup.between);
      findings.variants.push_back(way);
    }
    if (reads) {
      weigh_answers(small, set, setup, wanted, findings.small_refusal, rows);
      findings.unseen_refusal = unseen(small, set, setup, findings.small_refusal, rows);
    }
    auto report = summarize(findings);
    report.figures["model"] = model->name;
    report.figures["embedder"] = encoder->name();
    report.figures["cpu"] = kernels::cpu_model();
    report.figures["level"] = kernels::name(kernels::level());
    report.text += fmt::format("\n{}, {}; {}, level {}.\n", model->name, encoder->name(),
                               kernels::cpu_model(), kernels::name(kernels::level()));
    return report;
  }

 private:
  /// What is kept of spans in one way, and the words for it.
  struct Kept {
    std::string kv, help;
  };
  [[nodiscard]] std::vector<Kept> kept_variants() const {
    std::vector<Kept> out;
    if (o_.kv.empty()) return out;
    for (const auto& chain : parse_chains(o_.kv)) {
      Reader::check_kv(chain);
      const auto kv = print(KvPlan(chain).chain());
      if (std::any_of(out.begin(), out.end(), [&](const Kept& other) { return other.kv == kv; }))
        throw Error(Errc::usage, fmt::format("answers: --kv names '{}' twice", kv));
      out.push_back({kv, "best spans apart, of which this is kept"});
    }
    return out;
  }

  [[nodiscard]] std::vector<Variant> wanted_variants() const {
    const auto all = bench::variants();
    if (o_.variants == "all") return {all.begin(), all.end()};
    if (o_.variants == "none") return {};
    std::vector<Variant> out;
    for (const auto& name : listed(o_.variants)) {
      const auto found =
          std::find_if(all.begin(), all.end(), [&](const Variant& v) { return v.name == name; });
      if (found == all.end()) {
        std::vector<std::string> names;
        for (const auto& v : all) names.emplace_back(v.name);
        throw Error(Errc::usage, fmt::format("answers: no variant '{}'; there are {}", name,
                                             fmt::join(names, ", ")));
      }
      out.push_back(*found);
    }
    return out;
  }

  [[nodiscard]] std::map<std::string, std::string> read_peer() const {
    std::ifstream in(o_.peer);
    if (!in) throw Error(Errc::not_found, fmt::format("no {}", o_.peer));
    std::map<std::string, std::string> out;
    for (std::string line; std::getline(in, line);) {
      const auto row = nlohmann::json::parse(line, nullptr, false);
      if (row.is_discarded() || !row.is_object() || !row.contains("id") ||
          !row.contains("answer")) {
        throw Error(Errc::invalid, fmt::format("{}: line {} is not {{\"id\", \"answer\"}}", o_.peer,
                                               out.size() + 1));
      }
      out[row["id"].get<std::string>()] = row["answer"].get<std::string>();
    }
    return out;
  }

  static RecallFindings recall(ArticleMemory& memory, const QuestionSet& set,
                               std::span<const ArticleQuestion> others, const SuiteSetup& setup,
                               const std::string& name) {
    RecallFindings out{name, memory.passages(), memory.tokens(), {}, {}};
    Progress progress("searching " + name,
                      static_cast<std::int64_t>(set.questions.size() + others.size()), "questions");
    for (const auto& question : set.questions) {
      setup.between();
      out.questions.push_back(memory.retrieve(question));
      progress.advance(1);
    }
    for (const auto& question : others) {
      setup.between();
      out.others.push_back(memory.retrieve(question));
      progress.advance(1);
    }
    return out;
  }

  /// Answerable are the fixed questions; on tuning, where the threshold is set, all of the split.
  static RefusalFindings refusal(ArticleMemory& memory, const QuestionSet& set,
                                 const RecallFindings& found,
                                 const std::vector<std::string>& strangers,
                                 const std::string& which) {
    RefusalFindings out{found.memory, memory.passages(), {}, {}, {}, which};
    for (const auto& r : found.questions) out.answerable.push_back({r.relevance});
    if (set.split == "tuning") {
      for (const auto& r : found.others) out.answerable.push_back({r.relevance});
    }
    out.strangers = evidence_on(strangers, memory);
    return out;
  }

  /// What retrieval alone tells.
  static std::vector<Evidence> evidence_on(const std::vector<std::string>& questions,
                                           ArticleMemory& memory) {
    std::vector<Evidence> out;
    for (const auto& question : questions) out.push_back({memory.relevance(question)});
    return out;
  }

  /// The confidence in what each of the questions is answered, put beside what is known of it.
  static void read_in_doubt(ArticleMemory& memory, const std::string& which,
                            const std::vector<std::string>& questions, const SuiteSetup& setup,
                            std::vector<Evidence>& evidence, AnswerRows& rows) {
    const auto name = fmt::format("in doubt: {}, {} passages", which, memory.passages());
    ask_in_doubt(questions, name, memory, rows, setup.between);
    for (std::size_t i = 0; i < questions.size(); ++i)
      evidence[i].confidence = rows.row(name, questions[i]).at("confidence").get<double>();
  }

  /// The same memory and answerable questions beside strangers that no reader was trained on.
  static RefusalFindings unseen(ArticleMemory& memory, const QuestionSet& set,
                                const SuiteSetup& setup, const RefusalFindings& known,
                                AnswerRows& rows) {
    RefusalFindings out = known;
    out.memory += ", strangers never trained on";
    out.strangers_are = "the articles held back";
    out.strangers = evidence_on(set.unseen_strangers, memory);
    out.unanswerable.clear();
    read_in_doubt(memory, "unseen strangers", set.unseen_strangers, setup, out.strangers, rows);
    return out;
  }

  /// Where a prompt can refuse what it has read, the answers are part of the evidence.
  static void weigh_answers(ArticleMemory& memory, const QuestionSet& set, const SuiteSetup& setup,
                            std::span<const Variant> answered, RefusalFindings& findings,
                            AnswerRows& rows) {
    const auto weigh = [&](const std::string& which, const std::vector<std::string>& questions,
                           std::vector<Evidence>& evidence) {
      read_in_doubt(memory, which, questions, setup, evidence, rows);
    };
    // `ask --place each` has met the answerable ones already, if it was among the ways.
    constexpr std::string_view kAsk = "ask-each";
    if (std::any_of(answered.begin(), answered.end(),
                    [&](const auto& v) { return v.name == kAsk; })) {
      for (std::size_t i = 0; i < set.questions.size(); ++i)
        findings.answerable[i].confidence =
            rows.row(kAsk, set.questions[i].id).at("confidence").get<double>();
    } else {
      std::vector<std::string> texts;
      for (const auto& question : set.questions) texts.push_back(question.text);
      weigh("answerable", texts, findings.answerable);
    }
    weigh("strangers", set.strangers, findings.strangers);
    if (!findings.unanswerable.empty())
      weigh("unanswerable", set.unanswerable, findings.unanswerable);
  }

  Options o_;
};

void enrol(Registry& r) {
  r.add<Suite, Answers>("answers", "answers, citations and refusal on SQuAD");
}

}  // namespace mneme::suites::answers
