// What is told of pipelines: tables, JSON, lines of a file, pictures, and the suites as they are run.
#include "mneme/core/error.h"

#include "../smollm2.h"
#include "../tensor_check.h"
#include "bench/kv/figure.h"
#include "bench/kv/rows.h"
#include "bench/kv/texts.h"
#include "bench/scratch_folder.h"
#include "kv_models.h"
#include <fstream>
#include <gtest/gtest.h>
#include <limits>
#include <nlohmann/json.hpp>

namespace mneme::bench {
namespace {

std::size_t count(std::string_view text, std::string_view what) {
  std::size_t out = 0;
  for (auto at = text.find(what); at != text.npos; at = text.find(what, at + what.size())) ++out;
  return out;
}

/// Whether every tag is closed in its order, every attribute quoted, and no text holds a raw & or <; else what is wrong.
std::string flaw_of_xml(std::string_view xml) {
  std::vector<std::string> open;
  std::size_t at = 0;
  while (at < xml.size()) {
    const auto tag = xml.find('<', at);
    const auto text = xml.substr(at, std::min(tag, xml.size()) - at);
    for (auto amp = text.find('&'); amp != text.npos; amp = text.find('&', amp + 1)) {
      const auto name =
          text.substr(amp + 1, std::min<std::size_t>(text.find(';', amp) - amp - 1, 8));
      if (name != "amp" && name != "lt" && name != "gt" && name != "quot")
        return "a raw & in '" + std::string(text) + "'";
    }
    if (tag == xml.npos) break;
    const auto end = xml.find('>', tag);
    if (end == xml.npos) return "a tag without end";
    const auto inside = xml.substr(tag + 1, end - tag - 1);
    if (inside.find('<') != inside.npos) return "a raw < in '" + std::string(inside) + "'";
    if (count(inside, "\"") % 2 != 0) return "quotes in '" + std::string(inside) + "'";
    if (inside.starts_with('/')) {
      if (open.empty() || open.back() != inside.substr(1))
        return "'" + std::string(inside) + "' closes nothing";
      open.pop_back();
    } else if (!inside.ends_with('/')) {
      open.emplace_back(inside.substr(0, inside.find(' ')));
    }
    at = end + 1;
  }
  return open.empty() ? "" : "'" + open.back() + "' is not closed";
}

constexpr auto kNothing = std::numeric_limits<double>::quiet_NaN();

TEST(Figure, AScatterHasAPointAMeasurement) {
  const std::vector<ScatterPanel> panels{
      {"KL <nats> & \"more\"",
       {{"full", 1e6, 0, 0, 0},
        {"window(size=8) | quantize(bits=4)", 3e5, 0.4, 0.3, 0.5},
        {"window(size=8) | quantize(bits=4)", 6e5, 0.2, 0.1, 0.3},
        {"refused", 0, 0.2, 0.1, 0.3},
        {"refused", 1e5, kNothing, kNothing, kNothing}}},
      {"share", {{"full", 1e6, 1, 1, 1}}}};
  const auto svg = scatter_svg("a <title>", "bytes", panels);
  EXPECT_EQ(flaw_of_xml(svg), "");
  EXPECT_EQ(count(svg, "<circle"), 4u);
  EXPECT_EQ(count(svg, ">full<"), 1u) << "the legend has a series once";
  EXPECT_EQ(count(svg, ">refused<"), 0u);
  EXPECT_EQ(count(svg, "nan"), 0u);
  EXPECT_EQ(flaw_of_xml(scatter_svg("nothing", "bytes", {{"y", {}}})), "");
}

TEST(Figure, HeatMapsHaveACellADepthAndLength) {
  const std::vector<HeatMap> maps{{"full & all", {{1, 0.5, 0}, {0.25, kNothing, 1}}},
                                  {"window", {{0, 0, 0}, {1, 1, 1}}},
                                  {"third", {{0, 0, 0}, {1, 1, 1}}}};
  const auto svg =
      heat_maps_svg("needle", "tokens", {"128", "256", "512"}, "depth", {"0 %", "100 %"}, maps, 2);
  EXPECT_EQ(flaw_of_xml(svg), "");
  EXPECT_EQ(count(svg, "class=\"cell\""), 3u * 2 * 3);
  EXPECT_EQ(count(svg, ">0.25<"), 1u);
  EXPECT_EQ(count(svg, ">-<"), 1u) << "what was not measured has no number";
  EXPECT_EQ(count(svg, "nan"), 0u);
  EXPECT_EQ(count(svg, ">100 %<"), 3u);
}

TEST(Figure, TheCheckOfXmlFindsFlaws) {
  EXPECT_NE(flaw_of_xml("<a><b></a></b>"), "");
  EXPECT_NE(flaw_of_xml("<a>1 & 2</a>"), "");
  EXPECT_NE(flaw_of_xml("<a x=\"1></a>"), "");
  EXPECT_NE(flaw_of_xml("<a>"), "");
  EXPECT_EQ(flaw_of_xml("<a x=\"1\">1 &amp; 2<b/></a>"), "");
}

CompressedContext context_of(std::int64_t bytes, std::int64_t most, double seconds) {
  CompressedContext out;
  out.tokens = 100;
  out.bytes = bytes;
  out.most_bytes = most;
  out.kept = static_cast<double>(bytes) / 10;
  out.seconds = seconds;
  return out;
}

std::vector<KvRow> three_rows() {
  std::vector<KvRow> rows(3);
  rows[0].pipeline = "full";
  rows[0].scores = {{"score", {0.9, 0.8, 1.0}}};
  rows[0].footprint.add(context_of(1000, 1000, 2));
  rows[0].footprint.add(context_of(3000, 3000, 2));
  rows[1].pipeline = "window | quantize";
  rows[1].scores = {{"score", {0.5, 0.4, 0.6}}, {"further", {1, 1, 1}, 1}};
  rows[1].footprint.add(context_of(200, 1000, 1));
  rows[1].footprint.add(context_of(800, 3000, 1));
  rows[1].footprint.add_decoding(30, 2);
  rows[1].more["cells"] = 7;
  rows[2].pipeline = "merge";
  rows[2].refusal = "does not fit";
  return rows;
}

TEST(Rows, FootprintsAreMeansOverContexts) {
  const auto rows = three_rows();
  const auto& used = rows[1].footprint;
  EXPECT_EQ(used.bytes(), 500);
  EXPECT_EQ(used.most_bytes(), 3000);
  EXPECT_EQ(used.kept(), 50);
  EXPECT_EQ(used.prefill_tokens_per_s(), 100);
  EXPECT_EQ(used.decode_tokens_per_s(), 15);
  EXPECT_EQ(share_of_full(rows[1], rows), 0.25);
  EXPECT_EQ(share_of_full(rows[0], rows), 1);
  EXPECT_EQ(share_of_full(rows[2], rows), std::nullopt);
}

TEST(Rows, AShareIsOfTheFullCacheOfItsOwnPart) {
  auto rows = three_rows();
  rows[1].part = "2048 tokens";
  EXPECT_EQ(share_of_full(rows[1], rows), std::nullopt);
}

TEST(Rows, TheTableHasARowAPipeline) {
  const auto text = rows_text(three_rows());
  EXPECT_NE(text.find("| full | 0.900 [0.800, 1.000] |  | 2.0 KiB | 1.000 |"), text.npos) << text;
  EXPECT_NE(text.find("| window \\| quantize | 0.500 [0.400, 0.600] | 1.0 | 500 B | 0.250 |"),
            text.npos)
      << text;
  EXPECT_NE(text.find("refused: does not fit |"), text.npos) << text;
  EXPECT_EQ(text.find("observing"), text.npos);
  std::size_t bars = 0;  // every line has as many cells as the head
  for (std::size_t begin = 0; begin < text.size();) {
    const auto line = text.substr(begin, text.find('\n', begin) - begin);
    const auto here = count(line, "|") - count(line, "\\|");
    if (bars == 0) bars = here;
    if (!line.empty()) {
      EXPECT_EQ(here, bars) << line;
    }
    begin += line.size() + 1;
  }
}

TEST(Rows, ObservingIsToldWhereThereIsSome) {
  auto rows = three_rows();
  auto context = context_of(100, 100, 1);
  context.observe_seconds = 0.25;
  rows[1].footprint = {};
  rows[1].footprint.add(context);
  const auto text = rows_text(rows);
  EXPECT_NE(text.find("observing, s"), text.npos);
  EXPECT_NE(text.find(" 0.250 |"), text.npos);
}

TEST(Rows, EveryLineOfTheFileSaysWhatItWasFoundBy) {
  const auto model = check::letter_model();
  const ScratchFolder folder;
  KvOptions options;
  options.jsonl = (folder.path() / "rows.jsonl").string();
  options.plot = (folder.path() / "plot.svg").string();
  const KvRun run{"toy", {{"compute", "f32"}, {"samples", 3}}, "before", 11, &model};
  const auto rows = three_rows();
  (void)kv_report(run, options, rows, "behind", "<svg/>");
  const auto report = kv_report(run, options, rows, "behind", "<svg/>");
  std::ifstream in(options.jsonl);
  std::vector<nlohmann::json> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(nlohmann::json::parse(line));
  ASSERT_EQ(lines.size(), 6u) << "a second run is appended";
  for (const auto& line : lines) {
    for (const auto* key : {"suite", "pipeline", "model_digest", "tokenizer_digest", "compute",
                            "level", "commit", "seed", "options", "question", "threads"})
      EXPECT_TRUE(line.contains(key)) << key;
    EXPECT_EQ(line["seed"], 11);
    EXPECT_EQ(line["tokenizer_digest"], "letters");
    EXPECT_EQ(line["model_digest"], "random");
    EXPECT_EQ(line["compute"], "f32");
    EXPECT_EQ(line["question"], "before");
    EXPECT_EQ(line["options"]["samples"], 3);
  }
  EXPECT_EQ(lines[1]["scores"]["score"]["low"], 0.4);
  EXPECT_EQ(lines[1]["share_of_full"], 0.25);
  EXPECT_EQ(lines[1]["cells"], 7);
  EXPECT_EQ(lines[2]["refusal"], "does not fit");
  EXPECT_EQ(report.figures["rows"].size(), 3u);
  EXPECT_NE(report.text.find("behind"), std::string::npos);
  options.jsonl = (folder.path() / "no folder" / "rows").string();
  check::expect_error(Errc::io, "cannot be written",
                      [&] { (void)kv_report(run, options, rows, "", ""); });
}

TEST(Rows, IntervalsOfDifferencesArePaired) {
  std::vector<double> x, y;
  for (int i = 0; i < 50; ++i) {
    y.push_back(i % 7);
    x.push_back(y.back() - 0.5);
  }
  const auto e = estimated_difference(x, y);
  EXPECT_NEAR(e.value, -0.5, 1e-12);
  EXPECT_NEAR(e.low, -0.5, 1e-12) << "unpaired, the interval would be as wide as y's";
  EXPECT_NEAR(e.high, -0.5, 1e-12);
  EXPECT_LT(estimated_mean(x).low, estimated_mean(x).high - 0.5);
  EXPECT_TRUE(std::isnan(estimated_mean({}).value));
}

TEST(Texts, MadeUpWhereThereAreNoBooks) {
  const check::LetterTokenizer tokenizer;
  const auto a = sample_texts("/nowhere", "test", tokenizer, 100, 3, 5),
             b = sample_texts("/nowhere", "test", tokenizer, 100, 3, 5),
             c = sample_texts("/nowhere", "test", tokenizer, 100, 3, 6);
  ASSERT_EQ(a.size(), 3u);
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(a[i].ids.size(), 100u);
    EXPECT_EQ(a[i].source, "made up");
    EXPECT_EQ(a[i].ids, b[i].ids);
    EXPECT_NE(a[i].ids, c[i].ids);
  }
  EXPECT_NE(a[0].ids, a[1].ids);
}

TEST(Texts, OfTheBooksOfASplitInTurns) {
  // A file that is not packed reads as itself.
  const ScratchFolder folder;
  std::filesystem::create_directory(folder.path() / "books");
  const auto book = [&](const char* name, char letter) {
    std::ofstream out(folder.path() / "books" / name);
    for (int line = 0; line < 200; ++line) out << std::string(19, letter) << "\r\n";
  };
  book("Trollope_A.txt.gz", 'a');
  book("Trollope_B.txt.gz", 'b');
  book("Thackeray_C.txt.gz", 'c');
  const check::LetterTokenizer tokenizer;
  const auto got = sample_texts(folder.path(), "test", tokenizer, 50, 5, 1);
  ASSERT_EQ(got.size(), 5u);
  for (std::size_t i = 0; i < got.size(); ++i) {
    EXPECT_EQ(got[i].source, i % 2 == 0 ? "Trollope_A" : "Trollope_B");
    EXPECT_EQ(got[i].ids.size(), 50u);
    EXPECT_EQ(got[i].ids[0], i % 2) << "pieces begin with a line";
  }
  EXPECT_EQ(sample_texts(folder.path(), "dev", tokenizer, 50, 1, 1)[0].source, "Thackeray_C");
  check::expect_error(Errc::usage, "tokens in all",
                      [&] { (void)sample_texts(folder.path(), "test", tokenizer, 50'000, 1, 1); });
}

TEST(KvSuites, RunOnTheDefaultModel) {
  MNEME_NEEDS_SMOLLM2();
  const ScratchFolder folder;
  SuiteSetup setup;
  setup.data = folder.path();
  setup.seed = 4;
  const auto plot = (folder.path() / "plot.svg").string();
  for (const auto& [spec, marks, expected] :
       std::vector<std::tuple<std::string, std::string, std::size_t>>{
           {"fidelity(tokens=\"48\", continuation=4, samples=2, decode=0", "<circle", 2 * 2},
           {"perplexity(tokens=100, segments=2, chunk=32, decode=0", "<circle", 2},
           {"needle(lengths=\"80,100\", depths=\"0,100\", samples=1", "class=\"cell\"",
            2 * 2 * 2 * 3},
           {"needle(lengths=\"128\", depths=\"0,50,100\", samples=1, together=true",
            "class=\"cell\"", 2 * 3 * 3},
           {"ruler(tasks=\"needle; needle(form=number)\", lengths=\"80\", samples=2", "<circle",
            2 * 2}}) {
    auto suite = registry().make<Suite>(spec + ", kv=\"window(size=16)\", compute=f32, plot=\"" +
                                        plot + "\")");
    const auto report = suite->run(setup);
    const auto& rows = report.figures["rows"];
    ASSERT_EQ(rows.size(), 2u) << report.text;
    EXPECT_EQ(rows[0]["pipeline"], "full");
    EXPECT_EQ(rows[1]["pipeline"], "window(size=16)");
    EXPECT_EQ(rows[1]["seed"], 4);
    EXPECT_EQ(rows[1]["refusal"], "");
    EXPECT_EQ(rows[1]["compute"], "f32");
    EXPECT_LE(rows[1]["entries"].get<double>(), 20);
    EXPECT_LT(rows[1]["share_of_full"].get<double>(), 1.01);
    std::ifstream in(plot);
    const std::string svg{std::istreambuf_iterator<char>(in), {}};
    EXPECT_EQ(flaw_of_xml(svg), "") << spec;
    EXPECT_EQ(count(svg, marks), expected) << spec;
  }
}

}  // namespace
}  // namespace mneme::bench
