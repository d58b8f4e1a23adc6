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

"""What this package overrides and calls, against the installed Cinder.

Cinder and os-brick promise nothing to drivers outside their trees. These
tests read our sources and compare: every method that we override must take
what the original takes, every name that we use must exist, and every call
whose target can be told from the source must fit its signature.
"""

import ast
import importlib
import inspect
import pkgutil
import sys
import textwrap

from cinder import objects
import ddt
import testtools

import cinder_lustre

# As each service of Cinder does before anything else.
objects.register_all()

OURS = 'cinder_lustre'
# Cinder is on none of the hosts that load these, nor Nova on this one.
SKIPPED = ('cinder_lustre.tests', 'cinder_lustre.nova',
           'cinder_lustre.cmd.nova_compute')


def is_ours(name):
    return name == OURS or name.startswith(OURS + '.')


def module_names():
    for found in pkgutil.walk_packages(cinder_lustre.__path__, OURS + '.'):
        if not found.name.startswith(SKIPPED):
            yield found.name


def own_classes(module):
    return [value for value in vars(module).values()
            if inspect.isclass(value) and value.__module__ == module.__name__]


def signature_of(function):
    """A callable's signature, or None where it has none (some builtins)."""
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return None


def incompatibility(ours, original, private=False):
    """Why a call that fits the original's signature may not fit ours.

    :param private: the method begins with an underscore: what it requires is
                    passed by position, what is optional by name, as Cinder's
                    own drivers rely on
    """
    mine = list(ours.parameters.values())
    theirs = list(original.parameters.values())
    kinds = {parameter.kind for parameter in mine}
    any_position = inspect.Parameter.VAR_POSITIONAL in kinds
    any_keyword = inspect.Parameter.VAR_KEYWORD in kinds
    named = {parameter.name: parameter for parameter in mine}
    renamed = set()

    for position, parameter in enumerate(theirs):
        if parameter.kind is parameter.VAR_POSITIONAL:
            if not any_position:
                return f'*{parameter.name} is missing'
            continue
        if parameter.kind is parameter.VAR_KEYWORD:
            if not any_keyword:
                return f'**{parameter.name} is missing'
            continue
        same = named.get(parameter.name)
        optional = parameter.default is not parameter.empty
        if same is None:
            if any_keyword and (
                    any_position or private and optional
                    or parameter.kind is parameter.KEYWORD_ONLY):
                continue
            other = mine[position] if position < len(mine) else None
            if (private and not optional and other
                    and other.kind is parameter.kind):
                renamed.add(other.name)
                continue
            return f'{parameter.name} is missing'
        if (parameter.kind is parameter.POSITIONAL_OR_KEYWORD
                and mine.index(same) != position):
            return f'{parameter.name} is at another position'
        if optional and same.default is same.empty:
            return f'{parameter.name} has no default any more'

    known = {parameter.name for parameter in theirs} | renamed
    for parameter in mine:
        if (parameter.name not in known
                and parameter.default is parameter.empty
                and parameter.kind not in (parameter.VAR_POSITIONAL,
                                           parameter.VAR_KEYWORD)):
            return f'{parameter.name} is new and has no default'
    return None


def overridden(cls):
    """Yield name, our attribute and the foreign one that it hides."""
    for name in vars(cls):
        if name.startswith('__'):
            continue
        for base in cls.__mro__[1:]:
            if name in vars(base) and not is_ours(base.__module__):
                yield name, getattr(cls, name), getattr(base, name), base
                break


class Calls(ast.NodeVisitor):
    """Finds, in the source of one module, what it expects of others."""

    def __init__(self, module):
        self.module = module
        self.problems = []
        self._classes = []
        self._shadowed = [set()]

    def visit_ClassDef(self, node):
        self._classes.append(getattr(self.module, node.name, None))
        self.generic_visit(node)
        self._classes.pop()

    def visit_FunctionDef(self, node):
        arguments = node.args
        names = {argument.arg for argument in
                 arguments.posonlyargs + arguments.args
                 + arguments.kwonlyargs}
        names |= {inner.id for inner in ast.walk(node)
                  if isinstance(inner, ast.Name)
                  and isinstance(inner.ctx, ast.Store)}
        self._shadowed.append(self._shadowed[-1] | names)
        self.generic_visit(node)
        self._shadowed.pop()

    def visit_Attribute(self, node):
        self._resolve(node)
        self.generic_visit(node)

    def visit_Call(self, node):
        target, bound = self._target(node.func)
        signature = target is not None and signature_of(target)
        exact = not any(
            isinstance(argument, ast.Starred) for argument in node.args
        ) and all(keyword.arg for keyword in node.keywords)
        if signature and exact:
            given = [None] * (bound + len(node.args))
            named = {keyword.arg: None for keyword in node.keywords}
            try:
                signature.bind(*given, **named)
            except TypeError as error:
                self._problem(node, f'{ast.unparse(node.func)}: {error}')
        self.generic_visit(node)

    def _problem(self, node, text):
        self.problems.append(f'{self.module.__name__}:{node.lineno}: {text}')

    def _resolve(self, node):
        """The object behind a dotted name that begins with a module.

        The standard library is no matter of this test: what eventlet takes
        from it is there in processes without eventlet.
        """
        if isinstance(node, ast.Name):
            if node.id in self._shadowed[-1]:
                return None
            value = getattr(self.module, node.id, None)
            return value if (inspect.ismodule(value) and
                             value.__name__.partition('.')[0] not in
                             sys.stdlib_module_names) else None
        if not isinstance(node, ast.Attribute):
            return None
        owner = self._resolve(node.value)
        if owner is None or not (inspect.ismodule(owner)
                                 or inspect.isclass(owner)):
            return None
        if not hasattr(owner, node.attr):
            self._problem(node, f'{ast.unparse(node)} does not exist')
            return None
        return getattr(owner, node.attr)

    def _target(self, function):
        """What a call runs, and how many arguments are bound already."""
        if not isinstance(function, ast.Attribute):
            return None, 0
        name, owner = function.attr, function.value
        cls = self._classes[-1] if self._classes else None
        if cls and isinstance(owner, ast.Name) and owner.id == 'self':
            return self._method(function, name, cls.__mro__, cls)
        if (cls and isinstance(owner, ast.Call) and not owner.args
                and isinstance(owner.func, ast.Name)
                and owner.func.id == 'super'):
            return self._method(function, name, cls.__mro__[1:], cls)
        value = self._resolve(function)
        return (value if callable(value) else None), 0

    def _method(self, node, name, classes, cls):
        for base in classes:
            if name in vars(base):
                static = isinstance(vars(base)[name],
                                    (staticmethod, classmethod))
                value = getattr(base, name)
                return (value if callable(value) else None,
                        0 if static else 1)
        # A mixin calls what the classes that it is mixed into have.
        if not (any(assigns(base, name) for base in cls.__mro__)
                or any(issubclass(other, cls) and hasattr(other, name)
                       for other in own_classes(self.module))):
            self._problem(node, f'no class of {cls.__name__} has {name}')
        return None, 0


def assigns(cls, name):
    """Whether a class's source sets the attribute on its instances."""
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):
        return False
    return any(isinstance(node, ast.Attribute) and node.attr == name
               and isinstance(node.ctx, ast.Store)
               for node in ast.walk(ast.parse(source)))


@ddt.ddt
class ContractTestCase(testtools.TestCase):

    @ddt.data(*module_names())
    def test_overrides_take_what_the_original_takes(self, name):
        problems = []
        for cls in own_classes(importlib.import_module(name)):
            for method, ours, original, base in overridden(cls):
                where = f'{cls.__name__}.{method}, of {base.__module__}.' \
                        f'{base.__name__}'
                if callable(ours) != callable(original):
                    problems.append(f'{where}: one is no method')
                    continue
                expected = callable(original) and signature_of(original)
                if expected:
                    why = incompatibility(inspect.signature(ours), expected,
                                          method.startswith('_'))
                    if why:
                        problems.append(f'{where}: {why}')
        self.assertEqual([], problems)

    @ddt.data(*module_names())
    def test_names_exist_and_calls_fit(self, name):
        module = importlib.import_module(name)
        calls = Calls(module)
        with open(module.__file__) as source:
            calls.visit(ast.parse(source.read()))
        self.assertEqual([], calls.problems)


class Original:
    """What the classes of the test below override and call."""

    def verb(self, context, volume, size=None):
        pass

    @staticmethod
    def tool(path):
        pass


@ddt.ddt
class ContractCheckTestCase(testtools.TestCase):
    """The checks themselves see what they are there to see."""

    @ddt.data(
        (lambda self, context, volume, size=None: None, None),
        (lambda self, context, volume, size=None, more=1: None, None),
        (lambda self, *args, **kwargs: None, None),
        (lambda self, context, volume: None, 'size is missing'),
        (lambda self, volume, context, size=None: None,
         'context is at another position'),
        (lambda self, context, volume, size: None,
         'size has no default any more'),
        (lambda self, context, volume, size=None, *, more: None,
         'more is new and has no default'),
    )
    @ddt.unpack
    def test_override(self, ours, why):
        self.assertEqual(why, incompatibility(
            inspect.signature(ours), inspect.signature(Original.verb)))

    @ddt.data(
        (lambda self, ctxt, vol, size=None: None, None),
        (lambda self, context, volume, **kwargs: None, None),
        (lambda self, context, **kwargs: None, 'volume is missing'),
        (lambda self, context, volume: None, 'size is missing'),
    )
    @ddt.unpack
    def test_private_override(self, ours, why):
        self.assertEqual(why, incompatibility(
            inspect.signature(ours), inspect.signature(Original.verb), True))

    @ddt.data(
        ('self.verb(1, 2)', None),
        ('self.verb(1, volume=2, size=3)', None),
        ('self.tool(1)', None),
        ('super().verb(1, *rest)', None),
        ('ddt.unpack(self)', None),
        ('inspect.gone', None),
        ('self.verb(1)', "missing a required argument: 'volume'"),
        ('super().verb(1, 2, colour=3)', 'unexpected keyword argument'),
        ('self.tool(1, 2)', 'too many positional arguments'),
        ('self.gone()', 'no class of Child has gone'),
        ('ddt.gone', 'ddt.gone does not exist'),
        ('ddt.unpack()', "missing a required argument: 'func'"),
    )
    @ddt.unpack
    def test_call(self, call, problem):
        module = type(inspect)('module')
        source = (f'class Child(Original):\n'
                  f'    def act(self, *rest):\n'
                  f'        {call}\n')
        module.Original = Original
        module.ddt = ddt
        module.inspect = inspect
        exec(source, vars(module))
        calls = Calls(module)
        calls.visit(ast.parse(source))
        if problem is None:
            self.assertEqual([], calls.problems)
        else:
            self.assertIn(problem, calls.problems[0])
