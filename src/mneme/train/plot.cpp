#include "mneme/train/plot.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <fmt/format.h>
#include <iterator>
#include <limits>

namespace mneme {
namespace {

constexpr double kWidth = 760, kLeft = 70, kRight = 170, kTop = 44, kPanel = 220, kGap = 28,
                 kBottom = 48;
// Okabe and Ito's colours, which people with any colour vision tell apart.
constexpr std::array kColors{"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                             "#e69f00", "#56b4e9", "#000000"};

/// The values that an axis shows, and where it puts them.
struct Axis {
  double low = 0, high = 1, from = 0, to = 1;  // values; pixels

  [[nodiscard]] double operator()(double value) const {
    return from + (value - low) / (high - low) * (to - from);
  }
  /// Three to eight round values.
  [[nodiscard]] std::vector<double> ticks() const {
    const auto rough = (high - low) / 8, unit = std::pow(10.0, std::floor(std::log10(rough)));
    auto step = unit;
    for (const double factor : {1.0, 2.0, 5.0, 10.0}) {
      step = factor * unit;
      if (step >= rough) break;
    }
    std::vector<double> out;
    for (auto i = std::ceil(low / step); i * step <= high + 1e-9 * step; ++i)
      out.push_back(i * step + 0.0);
    return out;
  }
};

/// An axis from the least to the greatest value of one coordinate.
template <class Get>
Axis axis_over(const std::vector<const Curve*>& curves, double from, double to, Get get) {
  auto low = std::numeric_limits<double>::infinity(), high = -low;
  for (const auto* curve : curves) {
    for (const auto& point : curve->points) {
      const double value = get(point);
      if (!std::isfinite(value)) continue;
      low = std::min(low, value);
      high = std::max(high, value);
    }
  }
  if (low > high) low = 0, high = 1;
  if (low == high) {
    const auto room = low == 0 ? 1.0 : std::abs(low) * 0.1;
    low -= room, high += room;
  }
  return {low, high, from, to};
}

}  // namespace

std::string svg_escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
  }
  return out;
}

std::string plot_svg(std::string_view title, std::string_view x_label,
                     const std::vector<Panel>& panels) {
  std::vector<const Curve*> all;
  for (const auto& panel : panels) {
    for (const auto& curve : panel.curves) all.push_back(&curve);
  }
  const auto x = axis_over(all, kLeft, kWidth - kRight, [](const auto& p) { return p.first; });
  const auto count = static_cast<double>(panels.size());
  const auto height = kTop + count * kPanel + std::max(0.0, count - 1) * kGap + kBottom;
  std::string out;
  const auto add = [&]<class... A>(fmt::format_string<A...> format, A&&... values) {
    fmt::format_to(std::back_inserter(out), format, std::forward<A>(values)...);
  };
  const auto text = [&](double at_x, double at_y, std::string_view anchor, std::string_view content,
                        std::string_view more = "") {
    add("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\"{}>{}</text>\n", at_x, at_y, anchor,
        more, svg_escaped(content));
  };
  add("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" viewBox=\"0 0 {0} "
      "{1}\" "
      "font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" "
      "fill=\"white\"/>\n",
      kWidth, height);
  text(kLeft, 26, "start", title, " font-size=\"15\" font-weight=\"bold\"");
  auto top = kTop;
  for (const auto& panel : panels) {
    std::vector<const Curve*> own;
    for (const auto& curve : panel.curves) own.push_back(&curve);
    const auto y =
        axis_over(own, top + kPanel - 6, top + 6, [](const auto& p) { return p.second; });
    for (const auto value : y.ticks()) {
      add("<path d=\"M{:.1f} {:.1f}H{:.1f}\" stroke=\"#dddddd\"/>\n", kLeft, y(value),
          kWidth - kRight);
      text(kLeft - 6, y(value) + 4, "end", fmt::format("{:.6g}", value));
    }
    for (const auto value : x.ticks()) {
      add("<path d=\"M{:.1f} {:.1f}v5\" stroke=\"#333333\"/>\n", x(value), top + kPanel);
      if (&panel == &panels.back())
        text(x(value), top + kPanel + 18, "middle", fmt::format("{:.6g}", value));
    }
    add("<path d=\"M{:.1f} {:.1f}V{:.1f}H{:.1f}\" fill=\"none\" stroke=\"#333333\"/>\n", kLeft, top,
        top + kPanel, kWidth - kRight);
    const auto middle = top + kPanel / 2;
    text(16, middle, "middle", panel.label,
         fmt::format(" transform=\"rotate(-90 16 {:.1f})\"", middle));
    for (std::size_t i = 0; i < panel.curves.size(); ++i) {
      const auto& curve = panel.curves[i];
      const auto* color = kColors[i % kColors.size()];
      std::string path, dots;
      for (const auto& [at_x, at_y] : curve.points) {
        if (!std::isfinite(at_x) || !std::isfinite(at_y)) continue;
        path += fmt::format("{}{:.1f} {:.1f}", path.empty() ? "M" : "L", x(at_x), y(at_y));
        if (panel.dots) {
          dots += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\" fill=\"{}\"/>\n",
                              x(at_x), y(at_y), color);
        }
      }
      if (!path.empty())
        add("<path d=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.5\"/>\n{}", path, color,
            dots);
      const auto line = top + 12 + 18 * static_cast<double>(i);
      add("<path d=\"M{:.1f} {:.1f}h18\" stroke=\"{}\" stroke-width=\"3\"/>\n",
          kWidth - kRight + 14, line, color);
      text(kWidth - kRight + 38, line + 4, "start", curve.name);
    }
    top += kPanel + kGap;
  }
  text((kLeft + kWidth - kRight) / 2, height - 10, "middle", x_label);
  return out + "</svg>\n";
}

Curve smoothed(const Curve& curve, double keep, std::string name) {
  Curve out{std::move(name), {}};
  for (const auto& [x, y] : curve.points) {
    const auto before = out.points.empty() ? y : out.points.back().second;
    out.points.emplace_back(x, keep * before + (1 - keep) * y);
  }
  return out;
}

}  // namespace mneme
