#    Licensed under the Apache License, Version 2.0 (the "License"); you may
#    not use this file except in compliance with the License. You may obtain
#    a copy of the License at
#
#         http://www.apache.org/licenses/LICENSE-2.0
#
#    Unless required by applicable law or agreed to in writing, software
#    distributed under the License is distributed on an "AS IS" BASIS, WITHOUT
#    WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the
#    License for the specific language governing permissions and limitations
#    under the License.

"""Makes a page with plots of what was measured: HTML and SVG, in one file."""

import html
import math

_COLOURS = ('#0060a8', '#d06000', '#707070', '#208040', '#9040a0')
_STYLE = '''
body { font: 15px sans-serif; max-width: 62em; margin: 2em auto;
       padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { padding: .15em .7em; border-bottom: 1px solid #ccc;
         text-align: right; }
th:nth-child(-n+3), td:nth-child(-n+3) { text-align: left; }
svg text { font: 12px sans-serif; }
'''
_WIDTH, _LABEL, _BAR = 860, 260, 18
_HEIGHT, _MARGIN, _LINE = 300, 60, 14


def _text(x, y, text, anchor='start'):
    return '<text x="%.1f" y="%.1f" text-anchor="%s">%s</text>' % (
        x, y, anchor, html.escape(text))


def _line(x1, y1, x2, y2, colour='#000'):
    return ('<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s"/>'
            % (x1, y1, x2, y2, colour))


def _svg(height, parts):
    return ('<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" '
            'viewBox="0 0 %d %d">%s</svg>' % (
                _WIDTH, height, _WIDTH, height, ''.join(parts)))


def bars(rows, colours):
    """A plot of medians, with lines from the first to the third quartile.

    :param rows: dicts with case, tool, seconds and the quartiles
    :param colours: by tool
    """
    scale = (_WIDTH - _LABEL - 80) / max(row['third_quartile']
                                         for row in rows)
    parts = []
    y = 0
    case = None
    for row in rows:
        if row['case'] != case:
            case = row['case']
            y += 6
        parts += [
            _text(_LABEL - 8, y + 13, '%s  %s' % (case, row['tool']), 'end'),
            '<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>' % (
                _LABEL, y + 2, row['seconds'] * scale, _BAR - 4,
                colours[row['tool']]),
            _line(_LABEL + row['first_quartile'] * scale, y + _BAR / 2,
                  _LABEL + row['third_quartile'] * scale, y + _BAR / 2),
            _text(_LABEL + row['third_quartile'] * scale + 6, y + 13,
                  '%.3f s' % row['seconds'])]
        y += _BAR
    return _svg(y + 6, parts)


def lines(rows, colours):
    """A plot of medians over the numbers that the cases are, both as powers.

    :param rows: dicts with case (a number), tool and seconds
    """
    cases = sorted({row['case'] for row in rows})
    seconds = [row['seconds'] for row in rows]
    left, right = math.log10(cases[0]), math.log10(cases[-1])
    bottom = math.floor(math.log10(min(seconds)))
    top = max(bottom + 1, math.ceil(math.log10(max(seconds))))

    def place(case, taken):
        across = (math.log10(case) - left) / ((right - left) or 1)
        up = (math.log10(taken) - bottom) / (top - bottom)
        return (_MARGIN + across * (_WIDTH - 4 * _MARGIN),
                _HEIGHT - 30 - up * (_HEIGHT - 50))

    parts = []
    for power in range(bottom, top + 1):
        x, y = place(cases[0], 10 ** power)
        parts += [_line(x, y, place(cases[-1], 1)[0], y, '#ddd'),
                  _text(x - 6, y + 4, '%g s' % 10 ** power, 'end')]
    for case in cases:
        x, y = place(case, 10 ** bottom)
        parts.append(_text(x, y + 18, '%g' % case, 'middle'))
    ends = []
    for tool in dict.fromkeys(row['tool'] for row in rows):
        points = [place(row['case'], row['seconds'])
                  for row in sorted(rows, key=lambda row: row['case'])
                  if row['tool'] == tool]
        parts.append('<polyline fill="none" stroke-width="2" stroke="%s" '
                     'points="%s"/>' % (colours[tool], ' '.join(
                         '%.1f,%.1f' % point for point in points)))
        parts += ['<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>' % (
            *point, colours[tool]) for point in points]
        ends.append((*points[-1], tool))
    free = 0
    for x, y, tool in sorted(ends, key=lambda end: end[1]):
        # Lines may end in one point.
        free = max(y + 4, free)
        parts.append(_text(x + 8, free, tool))
        free += _LINE
    return _svg(_HEIGHT, parts)


def _table(columns, rows, cell):
    yield '<table><tr>%s</tr>' % ''.join(
        '<th>%s</th>' % html.escape(name) for name in columns.values())
    for row in rows:
        yield '<tr>%s</tr>' % ''.join(
            '<td>%s</td>' % html.escape(cell(name, row.get(name)))
            for name in columns)
    yield '</table>'


def write(path, title, facts, columns, rows, cell):
    """Write the page: facts, and a plot and a table for each operation.

    :param columns: headings of the tables, by the keys of the rows
    :param rows: dicts
    :param cell: gives a value as people read it, by its key
    """
    tools = dict.fromkeys(row['tool'] for row in rows)
    colours = {tool: _COLOURS[min(number, len(_COLOURS) - 1)]
               for number, tool in enumerate(tools)}
    parts = ['<!DOCTYPE html><html lang="en"><meta charset="utf-8">'
             '<title>%s</title><style>%s</style><h1>%s</h1><p>%s</p>' % (
                 html.escape(title), _STYLE, html.escape(title),
                 html.escape(', '.join('%s: %s' % item
                                       for item in facts.items())))]
    for operation in dict.fromkeys(row['operation'] for row in rows):
        some = [row for row in rows if row['operation'] == operation]
        numbers = {row['case'] for row in some}
        plot = (lines if len(numbers) > 1 and
                all(isinstance(case, int) for case in numbers) else bars)
        parts += ['<h2>%s</h2>' % html.escape(operation),
                  plot(some, colours), *_table(columns, some, cell)]
    with open(path, 'w') as stream:
        stream.write('\n'.join(parts) + '\n')
