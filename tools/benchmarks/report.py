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

"""Makes a table and JSON of what was measured."""

import json
import statistics

from oslo_utils import units


class Results:
    """What was measured, one row for each case and tool.

    :param cases: the names of what a case consists of
    """

    def __init__(self, *cases):
        self._cases = cases
        self._runs = {}

    def add(self, case, tool, measured):
        """Add one run.

        :param case: a tuple of the values of the cases
        """
        self._runs.setdefault(case, {}).setdefault(tool, []).append(measured)

    def seconds(self, case, tool):
        """The median of all runs; None when there was none."""
        runs = self._runs.get(case, {}).get(tool)
        return runs and statistics.median(run.seconds for run in runs)

    def rows(self, compare):
        """The rows as dicts.

        :param compare: gives, for a case and a tool, what other tools took,
                        by their names
        """
        for case, tools in self._runs.items():
            for tool, runs in tools.items():
                seconds = self.seconds(case, tool)
                first, third = quartiles([run.seconds for run in runs])
                row = dict(zip(self._cases, case), tool=tool, seconds=seconds,
                           first_quartile=first, third_quartile=third,
                           runs=[run.seconds for run in runs],
                           peak_bytes=max(run.peak for run in runs),
                           stored_bytes=runs[-1].stored)
                for other, taken in compare(case, tool).items():
                    row['times_as_fast_as_' + other] = (taken and
                                                        taken / seconds)
                yield row


class Comparison(Results):
    """What drivers took, beside the fastest of other tools: the limit.

    :param drivers: the names of the tools that are drivers
    :param other: the driver that others are compared with
    """

    def __init__(self, drivers, other, *cases):
        super().__init__(*cases)
        self._drivers = drivers
        self._other = other

    def limit(self, case):
        """The fastest tool of a case that is no driver, or None."""
        tools = [tool for tool in self._runs[case]
                 if tool not in self._drivers]
        return min(tools, key=lambda tool: self.seconds(case, tool),
                   default=None)

    def _compare(self, case, _tool):
        limit = self.limit(case)
        return {self._other: self.seconds(case, self._other),
                'limit': limit and self.seconds(case, limit)}

    def all_rows(self):
        """The rows of all tools."""
        return list(self.rows(self._compare))

    def best_rows(self):
        """The rows of the drivers, and of the limit with its name in "by"."""
        found = []
        for row in self.all_rows():
            if row['tool'] not in self._drivers:
                if row['tool'] != self.limit(tuple(
                        row[name] for name in self._cases)):
                    continue
                row.update(tool='limit', by=row['tool'])
            found.append(row)
        return found


def quartiles(values):
    """The first and the third quartile; of one value, that value twice."""
    if len(values) < 2:
        return values[0], values[0]
    first, _median, third = statistics.quantiles(values, n=4,
                                                 method='inclusive')
    return first, third


def cell(name, value):
    """A value as people read it, by the name of its column."""
    if value is None:
        return '-'
    if name.endswith('_bytes'):
        return '%.0f' % (value / units.Mi)
    if isinstance(value, float):
        return ('%.3f' if value < 0.1 else '%.2f') % value
    return str(value)


def table(columns, rows):
    """The lines of a table.

    :param columns: the headings, by the keys of the rows
    :param rows: dicts
    """
    lines = [list(columns.values())] + [
        [cell(name, row.get(name)) for name in columns] for row in rows]
    widths = [max(map(len, texts)) for texts in zip(*lines)]
    numbers = [all(_is_number(line[index]) for line in lines[1:])
               for index in range(len(widths))]
    for line in lines:
        yield '  '.join(
            text.rjust(width) if number else text.ljust(width)
            for text, width, number in zip(line, widths, numbers)).rstrip()


def _is_number(text):
    return text.replace('.', '').isdigit() or text == '-'


def write(path, content):
    """Write a file of JSON."""
    with open(path, 'w') as stream:
        json.dump(content, stream, indent=2)
        stream.write('\n')
