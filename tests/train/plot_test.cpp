#include "mneme/train/plot.h"

#include <cmath>
#include <gtest/gtest.h>
#include <limits>
#include <string>
#include <vector>

namespace mneme {
namespace {

/// Whether elements are opened and closed in order, with quoted attributes and no stray '<' or '&'.
::testing::AssertionResult well_formed(const std::string& text) {
  std::vector<std::string> open;
  for (std::size_t i = 0; i < text.size();) {
    if (text[i] == '&') {
      const auto end = text.find(';', i);
      const auto name = end == text.npos ? "" : text.substr(i + 1, end - i - 1);
      if (name != "amp" && name != "lt" && name != "gt" && name != "quot") {
        return ::testing::AssertionFailure() << "'&' at " << i;
      }
      i = end + 1;
      continue;
    }
    if (text[i] != '<') {
      ++i;
      continue;
    }
    const bool closing = text[i + 1] == '/';
    auto at = i + (closing ? 2 : 1);
    std::string name;
    while (at < text.size() && std::isalpha(static_cast<unsigned char>(text[at])))
      name += text[at++];
    if (name.empty()) return ::testing::AssertionFailure() << "'<' without a name at " << i;
    bool quoted = false;
    while (at < text.size() && (quoted || text[at] != '>')) {
      if (text[at] == '"') quoted = !quoted;
      if (text[at] == '<') return ::testing::AssertionFailure() << "'<' in a tag at " << at;
      ++at;
    }
    if (at >= text.size()) return ::testing::AssertionFailure() << "a tag without end at " << i;
    if (closing) {
      if (open.empty() || open.back() != name)
        return ::testing::AssertionFailure() << "</" << name << "> at " << i;
      open.pop_back();
    } else if (text[at - 1] != '/') {
      open.push_back(name);
    }
    i = at + 1;
  }
  if (!open.empty()) return ::testing::AssertionFailure() << "<" << open.back() << "> stays open";
  return ::testing::AssertionSuccess();
}

std::size_t count(const std::string& text, const std::string& part) {
  std::size_t out = 0;
  for (auto at = text.find(part); at != text.npos; at = text.find(part, at + 1)) ++out;
  return out;
}

TEST(Plot, CurvesWithAxesLabelsAndLegend) {
  const std::vector<Panel> panels{
      {"loss", {{"a step", {{1, 3.5}, {2, 2.5}, {3, 1.5}}}, {"mean", {{1, 3.5}, {3, 2}}}}, false},
      {"validation", {{"f1 <%>", {{0, 10}, {3, 70}}}}, true}};
  const auto svg = plot_svg("reader & \"co\"", "steps", panels);
  EXPECT_TRUE(well_formed(svg)) << svg;
  for (const auto* part : {"reader &amp; &quot;co&quot;", ">steps<", ">loss<", ">validation<",
                           ">a step<", ">mean<", ">f1 &lt;%&gt;<"}) {
    EXPECT_NE(svg.find(part), svg.npos) << part;
  }
  EXPECT_EQ(count(svg, "stroke-width=\"1.5\""), 3u) << "a line a curve";
  EXPECT_EQ(count(svg, "<circle"), 2u) << "points are marked where asked for";
  EXPECT_EQ(svg.find("nan"), svg.npos);
}

/// x = 0 ... 10 over 70 ... 590 and y = 0 ... 1 over 258 ... 50, by hand.
TEST(Plot, PointsStandWhereTheyShould) {
  const auto svg = plot_svg("t", "x", {{"y", {{"c", {{0, 0}, {5, 0.5}, {10, 1}}}}, false}});
  EXPECT_NE(svg.find("M70.0 258.0L330.0 154.0L590.0 50.0"), svg.npos) << svg;
  EXPECT_NE(svg.find(">0.4<"), svg.npos) << "round values on the axis";
  EXPECT_NE(svg.find(">6<"), svg.npos);
}

TEST(Plot, SurvivesOddCurves) {
  const auto infinite = std::numeric_limits<double>::infinity(), no_number = std::nan("");
  for (const std::vector<std::pair<double, double>>& points :
       std::vector<std::vector<std::pair<double, double>>>{{},
                                                           {{1, 2}},
                                                           {{1, 0}, {2, 0}},
                                                           {{1, no_number}, {2, infinite}, {3, 1}},
                                                           {{1, 1e300}, {2, -1e300}}}) {
    const auto svg = plot_svg("t", "x", {{"y", {{"c", points}}, true}});
    EXPECT_TRUE(well_formed(svg)) << svg;
    EXPECT_EQ(svg.find("nan"), svg.npos) << svg;
    EXPECT_EQ(svg.find("inf"), svg.npos) << svg;
  }
  EXPECT_TRUE(well_formed(plot_svg("t", "x", {})));
}

TEST(Plot, Smoothing) {
  const auto curve = smoothed({"c", {{1, 10}, {2, 20}, {3, 0}}}, 0.9, "s");
  ASSERT_EQ(curve.points.size(), 3u);
  EXPECT_DOUBLE_EQ(curve.points[0].second, 10);
  EXPECT_DOUBLE_EQ(curve.points[1].second, 11);
  EXPECT_DOUBLE_EQ(curve.points[2].second, 9.9);
}

}  // namespace
}  // namespace mneme
