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

"""The order in which tools have their turns."""


def orders(steps, repeat, chance):
    """Orders of steps, so that none always comes first, or after one other.

    :param steps: a list, which is the first order
    :param repeat: how many orders; each second one is the reverse of the one
                   before
    :param chance: a random.Random for the others
    """
    order = list(steps)
    for number in range(repeat):
        if number % 2:
            order = order[::-1]
        elif number:
            order = chance.sample(steps, len(steps))
        yield order
