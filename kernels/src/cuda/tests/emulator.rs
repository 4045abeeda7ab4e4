//! Builds the kernels for the processor, and launches them as the driver would.

use std::ffi::CString;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, OnceLock};

use candle_core::DType;
use half::{bf16, f16};
use libloading::Library;

use crate::cuda::binaries::file_of;
use crate::cuda::launch::{Arg, Launch, Values};
use crate::rng::Rng;

type Alloc = unsafe extern "C" fn(usize) -> *mut u8;
type Call = unsafe extern "C" fn(*mut Symbol);
type Run = unsafe extern "C" fn(Call, *mut Symbol, *const i8, *const u32, *const u32, u32, u32) -> bool;

/// What `emulator_symbol` calls: the kernel, and its arguments in places of 64 bits.
#[repr(C)]
struct Symbol {
    kernel: unsafe extern "C" fn(),
    arguments: *const u64,
}

/// The places that `emulator_symbol` has.
const MOST: usize = 12;

/// The device: one launch at a time.
pub(super) struct Emulator {
    library: Library,
    busy: Mutex<()>,
}

/// Numbers as the device holds them.
pub(super) trait Number: Copy {
    const KIND: DType;
}
impl Number for f32 {
    const KIND: DType = DType::F32;
}
impl Number for bf16 {
    const KIND: DType = DType::BF16;
}
impl Number for f16 {
    const KIND: DType = DType::F16;
}
impl Number for u32 {
    const KIND: DType = DType::U32;
}
impl Number for u8 {
    const KIND: DType = DType::U8;
}

fn build() -> Option<Emulator> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".into());
    let dir = tempfile::tempdir().expect("a scratch folder");
    let out = dir.path().join("kernels.so");
    let built = Command::new(&compiler)
        .args(["-O1", "-std=c++17", "-fPIC", "-shared", "-DMOESAIC_EMULATE", "-ffp-contract=off", "-o"])
        .arg(&out)
        .args(["emulator.cpp", "kernels.cpp"].map(|name| root.join("tests/cuda").join(name)))
        .arg("-I")
        .arg(root.join("tests/cuda"))
        .output();
    let built = match built {
        Ok(built) => built,
        Err(e) => {
            eprintln!("skipped: no C++ compiler ({compiler}: {e})");
            return None;
        }
    };
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    // SAFETY: it was built a moment ago from this crate's sources, and runs nothing when it is loaded.
    let library = unsafe { Library::new(&out) }.expect("the emulator loads");
    // What is loaded stays when the file is gone.
    Some(Emulator { library, busy: Mutex::new(()) })
}

/// The emulator, built once; `None`, and a message, where there is no C++ compiler, or no Linux.
pub(super) fn emulator() -> Option<&'static Emulator> {
    static EMULATOR: OnceLock<Option<Emulator>> = OnceLock::new();
    if !cfg!(all(target_os = "linux", target_pointer_width = "64")) {
        eprintln!("skipped: the emulator of CUDA kernels is for Linux");
        return None;
    }
    EMULATOR.get_or_init(build).as_ref()
}

impl Emulator {
    fn alloc(&self, bytes: usize) -> *mut u8 {
        // SAFETY: the symbol is of emulator.cpp and has this type.
        let at = unsafe { self.library.get::<Alloc>(b"emulator_alloc").expect("emulator_alloc")(bytes) };
        assert!(!at.is_null(), "no memory for {bytes} bytes");
        at
    }

    /// Memory that begins as NaN.
    pub fn empty<T: Number>(&self, len: usize) -> Values {
        Values { address: self.alloc(len * size_of::<T>()) as u64, len, dtype: T::KIND }
    }

    pub fn put<T: Number>(&self, values: &[T]) -> Values {
        self.put_at(values, 0)
    }

    /// The same, `by` values behind an address of 16 bytes.
    pub fn put_at<T: Number>(&self, values: &[T], by: usize) -> Values {
        let whole = self.alloc((values.len() + by) * size_of::<T>());
        let at = whole.wrapping_add(by * size_of::<T>());
        // SAFETY: the allocation has room for `by` values and these.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), at.cast::<T>(), values.len()) };
        Values { address: at as u64, len: values.len(), dtype: T::KIND }
    }

    pub fn get<T: Number>(&self, values: Values) -> Vec<T> {
        assert_eq!(values.dtype, T::KIND);
        // SAFETY: the values were made by this emulator with this type and length, and every bit pattern is one.
        unsafe { std::slice::from_raw_parts(values.address as *const T, values.len) }.to_vec()
    }

    pub fn run(&self, launch: &Launch) {
        let _one = self.busy.lock();
        assert_eq!(parameters(&launch.kernel), launch.args.iter().map(kind).collect::<Vec<_>>(), "{}", launch.kernel);
        let name = CString::new(launch.kernel.as_str()).expect("a name");
        let mut arguments = [0; MOST];
        assert!(launch.args.len() <= MOST, "{}", launch.kernel);
        for (place, arg) in arguments.iter_mut().zip(&launch.args) {
            *place = match *arg {
                Arg::Address(address) => address,
                Arg::Word(word) => u64::from(word),
            };
        }
        let Launch { grid, threads, shared, .. } = launch;
        // SAFETY: the symbols have these types; the launch touches only memory of this emulator, which is never given back.
        let ran = unsafe {
            let run = self.library.get::<Run>(b"emulator_launch").expect("emulator_launch");
            let call = *self.library.get::<Call>(b"emulator_symbol").expect("emulator_symbol");
            let kernel = *self.library.get::<unsafe extern "C" fn()>(name.as_bytes_with_nul()).expect("the kernel");
            let mut symbol = Symbol { kernel, arguments: arguments.as_ptr() };
            run(call, &raw mut symbol, name.as_ptr(), grid.as_ptr(), [*threads, 1, 1].as_ptr(), *shared, 17)
        };
        assert!(ran, "{} asks for too much", launch.kernel);
    }
}

/// How PTX calls the type of an argument.
fn kind(arg: &Arg) -> &'static str {
    match arg {
        Arg::Address(_) => ".u64",
        Arg::Word(_) => ".u32",
    }
}

/// The types of a kernel's parameters, as its PTX has them.
fn parameters(kernel: &str) -> Vec<&'static str> {
    let ptx = file_of(kernel).ptx();
    let Some((_, after)) = ptx.split_once(&format!(".entry {kernel}(")) else { panic!("no {kernel} in its file") };
    let list = after.split_once(')').map_or("", |(list, _)| list);
    list.lines()
        .filter_map(|line| {
            line.trim().strip_prefix(".param ")?.split_whitespace().find(|word| [".u64", ".u32"].contains(word))
        })
        .collect()
}

/// Normal numbers.
pub(super) fn normal(rng: &mut Rng, len: usize) -> Vec<f32> {
    (0..len).map(|_| rng.normal() as f32).collect()
}
