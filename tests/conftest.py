"What the fault and fuzz suites tried and what was lost, said once at the end; a test module counts in its TALLY"
from collections import Counter

import pytest

@pytest.fixture(autouse=True)
def tallied(request):
    "The counts of one test travel with its report, also from another process"
    t = getattr(request.module, 'TALLY', None)
    if t is not None: t.clear()
    yield
    if t: request.node.user_properties += t.items()

def paragraph(sums, failed):
    "The counts as a paragraph; nothing where nothing was counted"
    faults = {k.removeprefix('fault: '): n for k,n in sums.items() if k.startswith('fault: ')}; kills = {k.partition(', ')[2]: n for k,n in faults.items() if k.startswith('kill -9')}; said = []
    if faults:
        kinds = [f"{sum(kills.values())} kill -9 ({', '.join(f'{k} {n}' for k,n in kills.items())})"]*bool(kills) + [f'{n} {k}' for k,n in faults.items() if not k.startswith('kill -9')]
        said.append(f"{sum(faults.values())} faults: {', '.join(kinds)}; after each the same call again{f', {n:,} bytes held against undisturbed runs' if (n := sums['compared']) else ''}.")
    if sums['inputs']: said.append(f"{sums['inputs']:,} damaged inputs of {sums['input bytes']:,} bytes: {sums['accepted']:,} were sound and accepted, {sums['inputs']-sums['accepted']:,} refused by a typed error.")
    return ' '.join([*said, f"Lost: {f'{n} files' if (n := sums['lost']) else 'see the failures above' if failed else 'nothing'}."]) if said else ''

def pytest_terminal_summary(terminalreporter):
    sums = Counter()
    for r in terminalreporter.getreports(''):
        if r.when=='teardown':
            for k,n in r.user_properties: sums[k] += n
    if said := paragraph(sums, terminalreporter.getreports('failed')+terminalreporter.getreports('error')): terminalreporter.section('tried and lost'); terminalreporter.write_line(said)
