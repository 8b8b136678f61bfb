#include "bench/kv/figure.h"

#include "mneme/train/plot.h"

#include "bench/kv/rows.h"
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <fmt/format.h>
#include <iterator>
#include <limits>

namespace mneme::bench {
namespace {

constexpr double kFigureWidth = 860, kFigureLeft = 76, kFigureRight = 300, kFigureTop = 48,
                 kPanelHeight = 260, kPanelGap = 30, kFigureBottom = 52;
constexpr double kCellWidth = 62, kCellHeight = 30, kMapLeft = 66, kMapTop = 64, kMapRight = 26,
                 kMapBottom = 44;
constexpr double kTitleLine = 13, kTitleLetter = 6.2;  // of the names of maps
// Okabe and Ito's colours, which people with any colour vision tell apart.
constexpr std::array kSeriesColors{"#000000", "#0072b2", "#d55e00", "#009e73",
                                   "#cc79a7", "#e69f00", "#56b4e9"};

/// What fits a line of so many characters.
std::string svg_shortened(const std::string& text, std::size_t most) {
  return text.size() <= most ? text : text.substr(0, most - 3) + "...";
}

/// A title in lines of at most so many characters, three of them, parted at spaces where there are some.
std::vector<std::string> svg_lines(std::string_view title, std::size_t most) {
  std::vector<std::string> out;
  while (title.size() > most && out.size() < 2) {
    const auto space = title.rfind(' ', most);
    const auto end = space == title.npos || space == 0 ? most : space;
    out.emplace_back(title.substr(0, end));
    title.remove_prefix(space == end ? end + 1 : end);
  }
  out.push_back(svg_shortened(std::string(title), most));
  return out;
}

/// An SVG that is being written.
class Drawing {
 public:
  Drawing(double width, double height) {
    add("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:.0f}\" height=\"{1:.0f}\" "
        "viewBox=\"0 0 {0:.0f} {1:.0f}\" font-family=\"sans-serif\" font-size=\"12\">\n<rect "
        "width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        width, height);
  }
  template <class... A>
  void add(fmt::format_string<A...> format, A&&... values) {
    fmt::format_to(std::back_inserter(out_), format, std::forward<A>(values)...);
  }
  void text(double x, double y, std::string_view anchor, std::string_view content,
            std::string_view more = "") {
    add("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\"{}>{}</text>\n", x, y, anchor, more,
        svg_escaped(content));
  }
  void upright(double x, double y, std::string_view content) {
    text(x, y, "middle", content, fmt::format(" transform=\"rotate(-90 {:.1f} {:.1f})\"", x, y));
  }
  [[nodiscard]] std::string end() && { return std::move(out_) + "</svg>\n"; }

 private:
  std::string out_;
};

bool can_be_drawn(const ScatterPoint& point) {
  return std::isfinite(point.x) && point.x > 0 && std::isfinite(point.y);
}

/// The values that an axis shows, and where it puts them.
struct Scale {
  double low = std::numeric_limits<double>::infinity(), high = -low, from = 0, to = 1;
  void take(double value) {
    if (!std::isfinite(value)) return;
    low = std::min(low, value);
    high = std::max(high, value);
  }
  /// Some room on both sides, as a share of what is shown.
  void settle(double room) {
    if (low > high) low = 0, high = 1;
    const auto span = low == high ? std::max(1e-3, std::abs(low)) : high - low;
    low -= room * span;
    high += room * span;
  }
  [[nodiscard]] double operator()(double value) const {
    return from + (value - low) / (high - low) * (to - from);
  }
  /// Four to ten round values.
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

/// Powers of two between two powers of two, few enough to be told apart.
std::vector<double> byte_ticks(double low, double high) {
  std::vector<double> out;
  const auto step = std::max(1.0, std::ceil((high - low) / 7));
  for (auto i = std::ceil(low); i <= high; i += step) out.push_back(i);
  return out;
}

std::vector<std::string> series_of(const std::vector<ScatterPanel>& panels) {
  std::vector<std::string> out;
  for (const auto& panel : panels) {
    for (const auto& point : panel.points) {
      if (can_be_drawn(point) && std::find(out.begin(), out.end(), point.series) == out.end())
        out.push_back(point.series);
    }
  }
  return out;
}

/// From red over white to blue, as 0 to 1: lightness falls to both sides, so that it is read without colours too.
std::array<int, 3> heat_color(double value) {
  constexpr std::array<std::array<double, 3>, 3> kStops{
      {{178, 24, 43}, {247, 247, 247}, {33, 102, 172}}};
  const auto at = 2 * std::clamp(value, 0.0, 1.0);
  const auto below = std::min<std::size_t>(1, static_cast<std::size_t>(at));
  const auto part = at - static_cast<double>(below);
  std::array<int, 3> out{};
  for (std::size_t c = 0; c < 3; ++c)
    out[c] = static_cast<int>(
        std::lround(kStops[below][c] + part * (kStops[below + 1][c] - kStops[below][c])));
  return out;
}

}  // namespace

std::string scatter_svg(std::string_view title, std::string_view x_label,
                        const std::vector<ScatterPanel>& panels) {
  const auto right = kFigureWidth - kFigureRight;
  Scale x;
  for (const auto& panel : panels) {
    for (const auto& point : panel.points) {
      if (can_be_drawn(point)) x.take(std::log2(point.x));
    }
  }
  x.settle(0.06);
  x.from = kFigureLeft;
  x.to = right;
  const auto count = static_cast<double>(panels.size());
  const auto height =
      kFigureTop + count * kPanelHeight + std::max(0.0, count - 1) * kPanelGap + kFigureBottom;
  Drawing out(kFigureWidth, height);
  out.text(kFigureLeft, 28, "start", title, " font-size=\"15\" font-weight=\"bold\"");
  const auto series = series_of(panels);
  auto top = kFigureTop;
  for (const auto& panel : panels) {
    const auto bottom = top + kPanelHeight;
    Scale y;
    for (const auto& point : panel.points) {
      if (!can_be_drawn(point)) continue;
      y.take(point.y);
      y.take(point.low);
      y.take(point.high);
    }
    y.settle(0.06);
    y.from = bottom - 4;
    y.to = top + 4;
    for (const auto value : y.ticks()) {
      out.add("<path d=\"M{:.1f} {:.1f}H{:.1f}\" stroke=\"#dddddd\"/>\n", kFigureLeft, y(value),
              right);
      out.text(kFigureLeft - 6, y(value) + 4, "end", fmt::format("{:.4g}", value));
    }
    for (const auto value : byte_ticks(x.low, x.high)) {
      out.add("<path d=\"M{:.1f} {:.1f}v5\" stroke=\"#333333\"/>\n", x(value), bottom);
      if (&panel == &panels.back())
        out.text(x(value), bottom + 18, "middle", bytes_text(std::exp2(value)));
    }
    out.add("<path d=\"M{:.1f} {:.1f}V{:.1f}H{:.1f}\" fill=\"none\" stroke=\"#333333\"/>\n",
            kFigureLeft, top, bottom, right);
    out.upright(18, top + kPanelHeight / 2, panel.label);
    for (std::size_t s = 0; s < series.size(); ++s) {
      const auto* color = kSeriesColors[s % kSeriesColors.size()];
      // A second round through the colours has hollow points.
      const auto* fill = s < kSeriesColors.size() ? color : "white";
      std::string line;
      for (const auto& point : panel.points) {
        if (point.series != series[s] || !can_be_drawn(point)) continue;
        line += fmt::format("{}{:.1f} {:.1f}", line.empty() ? "M" : "L", x(std::log2(point.x)),
                            y(point.y));
      }
      if (line.find('L') != std::string::npos)
        out.add("<path d=\"{}\" fill=\"none\" stroke=\"{}\" stroke-opacity=\"0.35\"/>\n", line,
                color);
      for (const auto& point : panel.points) {
        if (point.series != series[s] || !can_be_drawn(point)) continue;
        const auto at = x(std::log2(point.x));
        if (std::isfinite(point.low) && std::isfinite(point.high) && point.low < point.high)
          out.add("<path d=\"M{:.1f} {:.1f}V{:.1f}\" stroke=\"{}\" stroke-width=\"1.5\"/>\n", at,
                  y(point.low), y(point.high), color);
        out.add(
            "<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"4\" fill=\"{}\" stroke=\"{}\" "
            "stroke-width=\"1.5\"/>\n",
            at, y(point.y), fill, color);
      }
    }
    top = bottom + kPanelGap;
  }
  for (std::size_t s = 0; s < series.size(); ++s) {
    const auto* color = kSeriesColors[s % kSeriesColors.size()];
    const auto line = kFigureTop + 10 + 18 * static_cast<double>(s);
    out.add(
        "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"9\" height=\"9\" fill=\"{}\" stroke=\"{}\"/>\n",
        right + 16, line - 5, s < kSeriesColors.size() ? color : "white", color);
    out.text(right + 32, line + 4, "start", svg_shortened(series[s], 46), " font-size=\"11\"");
  }
  out.text((kFigureLeft + right) / 2, height - 10, "middle", x_label);
  return std::move(out).end();
}

std::string heat_maps_svg(std::string_view title, std::string_view x_label,
                          const std::vector<std::string>& columns, std::string_view y_label,
                          const std::vector<std::string>& rows, const std::vector<HeatMap>& maps,
                          std::size_t across) {
  across = std::max<std::size_t>(1, std::min(across, std::max<std::size_t>(1, maps.size())));
  const auto down = (maps.size() + across - 1) / across;
  const auto width =
      std::max(240.0, kMapLeft + static_cast<double>(columns.size()) * kCellWidth + kMapRight);
  const auto height = kMapTop + static_cast<double>(rows.size()) * kCellHeight + kMapBottom;
  Drawing out(static_cast<double>(across) * width, kFigureTop + static_cast<double>(down) * height);
  out.text(12, 28, "start", title, " font-size=\"15\" font-weight=\"bold\"");
  for (std::size_t m = 0; m < maps.size(); ++m) {
    const auto left = static_cast<double>(m % across) * width + kMapLeft;
    const auto top = kFigureTop + static_cast<double>(m / across) * height + kMapTop;
    const auto lines =
        svg_lines(maps[m].title, static_cast<std::size_t>((width - 16) / kTitleLetter));
    for (std::size_t n = 0; n < lines.size(); ++n)
      out.text(left - kMapLeft + 12,
               top - 24 - kTitleLine * static_cast<double>(lines.size() - 1 - n), "start", lines[n],
               " font-weight=\"bold\" font-size=\"10\"");
    for (std::size_t c = 0; c < columns.size(); ++c)
      out.text(left + (static_cast<double>(c) + 0.5) * kCellWidth, top - 6, "middle", columns[c]);
    for (std::size_t r = 0; r < rows.size(); ++r) {
      const auto y = top + static_cast<double>(r) * kCellHeight;
      out.text(left - 6, y + kCellHeight / 2 + 4, "end", rows[r]);
      for (std::size_t c = 0; c < columns.size(); ++c) {
        const auto value = maps[m].values[r][c];
        const auto x = left + static_cast<double>(c) * kCellWidth;
        const bool measured = std::isfinite(value);
        const auto color = measured ? heat_color(value) : std::array<int, 3>{221, 221, 221};
        out.add(
            "<rect class=\"cell\" x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" "
            "fill=\"#{:02x}{:02x}{:02x}\" stroke=\"white\"/>\n",
            x, y, kCellWidth, kCellHeight, color[0], color[1], color[2]);
        const bool dark = measured && std::abs(value - 0.5) > 0.3;
        out.text(x + kCellWidth / 2, y + kCellHeight / 2 + 4, "middle",
                 measured ? fmt::format("{:.2f}", value) : "-",
                 dark ? " fill=\"white\"" : " fill=\"#333333\"");
      }
    }
    const auto bottom = top + static_cast<double>(rows.size()) * kCellHeight;
    out.text(left + static_cast<double>(columns.size()) * kCellWidth / 2, bottom + 18, "middle",
             x_label);
    out.upright(left - kMapLeft + 18, top + static_cast<double>(rows.size()) * kCellHeight / 2,
                y_label);
  }
  return std::move(out).end();
}

}  // namespace mneme::bench
