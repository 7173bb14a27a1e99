//! Says where it was put, and where its device tree is: in X0's place, and at
//! RAM's base.
#![cfg_attr(target_os = "none", no_std, no_main)]

tests::program!(image::main, 1);

#[cfg(target_os = "none")]
mod image {
    use tests::bare::{RAM_BASE, machine};
    use tests::println;

    pub fn main() {
        let machine = machine::get();
        let tree = machine.tree.as_ptr().addr();
        let (image, initrd) = (machine.image.start, machine.initrd());
        println!("placed at {image:#x}, tree at {tree:#x}, initrd at {initrd:x?}");
        // SAFETY: RAM begins there on the machines that this is run on.
        let at_base = unsafe { machine::bytes(RAM_BASE) };
        let same = at_base.is_some_and(|bytes| bytes == machine.tree);
        println!("a tree at RAM's base: {same}");
    }
}
