//! What is known of drivers and XDP. Sources stand in `docs/drivers.md`, which has this table's rows.

/// A driver with native XDP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Driver {
    /// As `ethtool -i` names it.
    pub name: &'static str,
    /// First kernel with native XDP in it.
    pub since: (u8, u8),
    /// Largest MTU with a program that takes no fragments, as ours (x86, 4 KB pages); None: not limited by the driver,
    /// or not known.
    pub max_mtu: Option<u32>,
}

const fn driver(name: &'static str, since: (u8, u8), max_mtu: u32) -> Driver {
    Driver {
        name,
        since,
        max_mtu: if max_mtu == 0 { None } else { Some(max_mtu) },
    }
}

/// By name.
const DRIVERS: [Driver; 36] = [
    driver("atlantic", (5, 19), 2048),
    driver("bnxt_en", (4, 11), 3502),
    driver("bonding", (5, 15), 0),
    driver("dpaa_eth", (5, 11), 3706),
    driver("ena", (5, 6), 3498),
    driver("fec", (6, 2), 0),
    driver("fsl_dpaa2_eth", (5, 0), 0),
    driver("fsl_enetc", (5, 13), 0),
    driver("funeth", (5, 18), 3566),
    driver("gve", (6, 4), 2032),
    driver("hv_netvsc", (5, 6), 3506),
    driver("i40e", (4, 13), 3046),
    driver("ice", (5, 5), 3046),
    driver("igb", (5, 10), 3046),
    driver("igc", (5, 13), 1500),
    driver("ionic", (6, 9), 3502),
    driver("ixgbe", (4, 12), 3050),
    driver("ixgbevf", (4, 17), 3050),
    driver("mana", (5, 17), 3506),
    driver("mlx4_en", (4, 8), 3498),
    driver("mlx5_core", (4, 9), 3498),
    driver("mtk_soc_eth", (6, 0), 3520),
    driver("mvneta", (5, 5), 3520),
    driver("mvpp2", (5, 9), 3552),
    driver("netsec", (5, 3), 1500),
    driver("nfp", (4, 10), 4096),
    driver("nicvf", (4, 12), 1508),
    driver("qede", (4, 10), 0),
    driver("rvu_nicpf", (5, 16), 1508),
    driver("sfc", (5, 5), 3508),
    driver("stmmaceth", (5, 13), 1500),
    driver("tun", (4, 14), 1500),
    driver("veth", (4, 19), 3506),
    driver("vif", (5, 9), 3840),
    driver("virtio_net", (4, 10), 3506),
    driver("vmxnet3", (6, 6), 3494),
];

/// What is known of a driver; None: no native XDP that we know of.
pub fn known(name: &str) -> Option<&'static Driver> {
    DRIVERS.iter().find(|driver| driver.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The page and the table say the same.
    #[test]
    fn every_driver_has_its_row_in_the_docs() {
        let page = include_str!("../../../docs/drivers.md");
        for Driver {
            name,
            since,
            max_mtu,
        } in DRIVERS
        {
            let mtu = max_mtu.map_or_else(|| "–".to_owned(), |mtu| mtu.to_string());
            let row = format!("| `{name}` | {}.{} | {mtu} |", since.0, since.1);
            assert!(page.contains(&row), "no row {row}");
        }
        assert!(DRIVERS.is_sorted_by_key(|driver| driver.name));
    }
}
