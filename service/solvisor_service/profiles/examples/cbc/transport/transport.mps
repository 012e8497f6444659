* Two plants, three markets: the least cost of shipping (after Dantzig).
NAME          TRANSPORT
ROWS
 N  COST
 L  SEATTLE
 L  SANDIEGO
 G  NEWYORK
 G  CHICAGO
 G  TOPEKA
COLUMNS
    SEA_NY    COST      0.225        SEATTLE   1.0
    SEA_NY    NEWYORK   1.0
    SEA_CHI   COST      0.153        SEATTLE   1.0
    SEA_CHI   CHICAGO   1.0
    SEA_TOP   COST      0.162        SEATTLE   1.0
    SEA_TOP   TOPEKA    1.0
    SD_NY     COST      0.225        SANDIEGO  1.0
    SD_NY     NEWYORK   1.0
    SD_CHI    COST      0.162        SANDIEGO  1.0
    SD_CHI    CHICAGO   1.0
    SD_TOP    COST      0.126        SANDIEGO  1.0
    SD_TOP    TOPEKA    1.0
RHS
    RHS       SEATTLE   350.0        SANDIEGO  600.0
    RHS       NEWYORK   325.0        CHICAGO   300.0
    RHS       TOPEKA    275.0
ENDATA
