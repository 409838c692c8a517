use lb_tests::kernel::{Kernel, SMALL};

#[test]
fn loads() {
    let mut kernel = Kernel::load("load", SMALL).unwrap();
    println!("{:?}", kernel.run(&[0; 64], 1).unwrap());
    for name in ["millrace_xdp", "millrace_tc"] {
        let info = kernel.ebpf.program(name).unwrap().info().unwrap();
        println!("{name} verified {:?}", info.verified_instruction_count());
    }
}
