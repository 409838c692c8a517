//! A server that says its name and echoes, over TCP and UDP.
//!
//! TCP: one line with the name at once, then every byte back, for as long as the client likes. UDP: the name, a space
//! and what was asked. It holds thousands of connections with two threads.

use std::{
    net::{SocketAddr, UdpSocket},
    thread,
};

use anyhow::{Context as _, Result};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    runtime,
};

/// Serves until killed. Each address gets a socket of its own, so that a UDP answer leaves from the address that was
/// asked.
pub fn serve(name: &str, addresses: Vec<SocketAddr>) -> Result<()> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let greeting: &'static [u8] = format!("{name}\n").into_bytes().leak();
    runtime.block_on(async {
        for address in addresses {
            let datagrams = UdpSocket::bind(address).with_context(|| address.to_string())?;
            let name = name.to_owned();
            thread::spawn(move || answer_datagrams(&name, &datagrams));
            tokio::spawn(accept(listen(address)?, greeting));
        }
        std::future::pending().await
    })
}

fn listen(address: SocketAddr) -> Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address).with_context(|| address.to_string())?;
    Ok(socket.listen(16_384)?)
}

async fn accept(listener: TcpListener, greeting: &'static [u8]) {
    loop {
        if let Ok((connection, _)) = listener.accept().await {
            tokio::spawn(converse(connection, greeting));
        }
    }
}

/// Ends when either side does; a broken connection is the client's finding, not ours.
async fn converse(mut connection: TcpStream, greeting: &[u8]) {
    let mut buffer = [0; 256];
    let mut answer = greeting.len();
    buffer[..answer].copy_from_slice(greeting);
    while connection.write_all(&buffer[..answer]).await.is_ok() {
        match connection.read(&mut buffer).await {
            Ok(length @ 1..) => answer = length,
            _ => return,
        }
    }
}

fn answer_datagrams(name: &str, socket: &UdpSocket) {
    // Datagrams of any length.
    let mut buffer = vec![0; 1 << 16];
    loop {
        // An ICMP error for an earlier answer shows up here; the next question is not its business.
        let Ok((length, client)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let answer = [name.as_bytes(), b" ", &buffer[..length]].concat();
        drop(socket.send_to(&answer, client));
    }
}
